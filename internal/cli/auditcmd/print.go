package auditcmd

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/receipt"
	"creel/internal/cli/command"
)

// longest is how many characters of one value a table shows.
const longest = 72

// left out of tables: signatures and keys say nothing to people.
var unread = map[string]bool{"key": true, "retires": true, "ledger": true, "dir": true, "log": true}

// cells are a record as a row.
func cells(r audit.Record) []string {
	sandbox := r.Sandbox
	if len(sandbox) > 12 {
		sandbox = sandbox[:12]
	}
	return []string{r.Time.Local().Format("2006-01-02 15:04:05.000"), sandbox, string(r.Kind), details(r.Data)}
}

// leading are the keys that come before the others, in this order. Those that
// are true here need no name.
var leading = []struct {
	key  string
	bare bool
}{{"decision", true}, {"method", true}, {"path", true}, {"status", false}, {"alert", true}, {"name", false}, {"limit", false},
	{"rule", false}, {"reason", false}, {"names", false}, {"count", false}}

// details are a record's data: of what is about a destination, that and what
// was decided first; the rest as key=value, sorted by key.
func details(data json.RawMessage) string {
	var values map[string]any
	if json.Unmarshal(data, &values) != nil {
		return ""
	}
	var out []string
	take := func(key string, bare bool) {
		text := display(values[key])
		if v, there := values[key]; there && text != "" && !unread[key] && !(bare && v == "") {
			if !bare {
				text = key + "=" + text
			}
			out = append(out, text)
		}
		delete(values, key)
	}
	if host, ok := values["host"].(string); ok {
		port, _ := values["port"].(float64)
		others, _ := values["others"].(bool)
		if host != "" || others {
			out = append(out, target(host, int64(port), others))
		}
		for _, key := range []string{"host", "port", "others"} {
			delete(values, key)
		}
		for _, l := range leading {
			take(l.key, l.bare)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		take(key, false)
	}
	return strings.Join(out, " ")
}

// display is a value as one word or a quoted one. What a guest has a say in
// must not reach the terminal as control characters.
func display(v any) string {
	switch v := v.(type) {
	case string:
		return quote(strings.TrimPrefix(v, "sha256:"), strings.HasPrefix(v, "sha256:"))
	case []any:
		var words []string
		for _, x := range v {
			words = append(words, display(x))
		}
		return strings.Join(words, ",")
	case map[string]any:
		if size, ok := v["size"].(float64); ok {
			return fmt.Sprintf("%.0f lines", size)
		}
		var counts []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if n, ok := v[key].(float64); ok {
				counts = append(counts, quote(key, false)+":"+display(n))
			}
		}
		return strings.Join(counts, ",")
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

func quote(s string, digest bool) string {
	if digest && len(s) > 12 {
		return s[:12]
	}
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest-1]) + "…"
	}
	if q := strconv.Quote(s); q != `"`+s+`"` || s == "" || strings.ContainsAny(s, " ,=") {
		return q
	}
	return s
}

// printReceipt shows a verified receipt to people.
func printReceipt(w io.Writer, r receipt.Receipt) error {
	t := command.Table(w, "RECEIPT", "signature and subject verified")
	line := func(name, value string) {
		if value != "" {
			command.Row(t, name, value)
		}
	}
	line("sandbox", r.Sandbox+" ("+quote(r.Name, false)+")")
	line("image", quote(r.Image, false))
	line("template", r.Template)
	line("tier", r.Tier)
	line("policy", strings.Join(r.Policies, ", "))
	line("confinement", r.Confinement)
	line("accelerator", r.Accel)
	if !r.Started.IsZero() {
		line("started", r.Started.Local().Format(time.RFC3339))
	}
	if r.ExitCode == nil {
		line("exit code", "not known: its keeper was killed")
	} else {
		line("exit code", strconv.Itoa(*r.ExitCode))
	}
	networkRows(line, r)
	for _, f := range r.FilesIn {
		line("in", fmt.Sprintf("%s %d bytes %s", quote(f.Path, false), f.Bytes, f.Digest))
	}
	for _, f := range r.FilesOut {
		line("out", fmt.Sprintf("%s %d bytes %s", quote(f.Path, false), f.Bytes, f.Digest))
	}
	line("left behind", leftBehind(r.Cleanup))
	line("audit log", fmt.Sprintf("%d lines, root %s", r.Audit.Log.Size, r.Audit.Log.Root))
	line("ledger", fmt.Sprintf("%d lines, root %s", r.Audit.Ledger.Size, r.Audit.Ledger.Root))
	for _, c := range r.Contradictions {
		line("CONTRADICTION", c)
	}
	return t.Flush()
}

// shown is how many hosts of a decision, or alerts, a table has.
const shown = 20

// networkRows are what a receipt tells of the network.
func networkRows(line func(name, value string), r receipt.Receipt) {
	var secrets []string
	for _, name := range r.Secrets {
		secrets = append(secrets, quote(name, false))
	}
	line("secrets used", strings.Join(secrets, ", "))
	for _, decision := range []string{event.Allow, event.Deny} {
		name, n := map[string]string{event.Allow: "reached", event.Deny: "denied"}[decision], 0
		for _, h := range r.Hosts {
			if h.Decision != decision {
				continue
			}
			if n++; n <= shown || h.Others {
				line(name, hostText(h))
			}
		}
		line(name, unshown(n))
	}
	for _, p := range r.Ports {
		line("port", fmt.Sprintf("%d/%s, connected to from outside %s", p.Port, quote(p.Proto, false), times(p.Count)))
	}
	for _, b := range r.Budgets {
		line("budget", budgetText(b))
	}
	for i, a := range r.Alerts {
		if i < shown || a.Others {
			line("ALERT", alertText(a))
		}
	}
	line("ALERT", unshown(len(r.Alerts)))
}

func unshown(n int) string {
	if n <= shown {
		return ""
	}
	return fmt.Sprintf("and more, %d in all; --json lists them", n)
}

func times(n int64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func hostText(h receipt.Host) string {
	text := target(h.Host, int64(h.Port), h.Others) + ", " + times(h.Count)
	if h.Count == 0 && h.Failed > 0 {
		return target(h.Host, int64(h.Port), h.Others) + ", could not be connected to " + times(h.Failed)
	}
	if h.Decision == event.Allow {
		text += fmt.Sprintf(", %d bytes out, %d in", h.BytesOut, h.BytesIn)
	}
	if h.Failed > 0 {
		text += fmt.Sprintf(", %d failed", h.Failed)
	}
	return text
}

func budgetText(b receipt.Budget) string {
	text := b.Name
	if b.Limit > 0 {
		text += fmt.Sprintf(": %d of %d", b.Used, b.Limit)
	}
	if b.Name == "requests_per_minute" {
		text = fmt.Sprintf("%s: at most %d", b.Name, b.Limit) // its use is not of the whole run
	}
	if b.Rule != "" {
		text += " of rule " + quote(b.Rule, false)
	}
	if b.Spent {
		text += ", used up"
	}
	return text
}

func alertText(a receipt.Alert) string {
	if a.Others {
		return "others, " + times(a.Count)
	}
	if a.Alert == event.AlertNames {
		return fmt.Sprintf("many different names below %s were asked for", quote(a.Name, false))
	}
	text := fmt.Sprintf("%s %s was about to leave in the %s", quote(a.Alert, false), quote(a.Name, false), quote(a.Where, false))
	if a.Host != "" {
		text += " to " + target(a.Host, int64(a.Port), false)
	}
	return text + ", " + times(a.Count)
}

// target is a destination as people write it.
func target(host string, port int64, others bool) string {
	switch {
	case others:
		return "others"
	case port == 0:
		return quote(host, false)
	case strings.Contains(host, ":"):
		return fmt.Sprintf("[%s]:%d", quote(host, false), port)
	}
	return fmt.Sprintf("%s:%d", quote(host, false), port)
}

func leftBehind(c receipt.Cleanup) string {
	out := "nothing; looked for " + strings.Join(c.Checked, ", ")
	switch {
	case len(c.Left) > 0:
		out = strings.Join(c.Left, ", ")
	case !c.Complete || len(c.Checked) == 0:
		out = "not known"
	}
	if len(c.Kept) > 0 {
		out += "; kept: " + strings.Join(c.Kept, ", ")
	}
	return out
}
