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

// details are a record's data as key=value, sorted by key.
func details(data json.RawMessage) string {
	var values map[string]any
	if json.Unmarshal(data, &values) != nil {
		return ""
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if text := display(values[key]); text != "" && !unread[key] {
			out = append(out, key+"="+text)
		}
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
		return ""
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
	line("secrets", strings.Join(r.Secrets, ", "))
	for _, h := range r.Hosts {
		line("host", fmt.Sprintf("%s %s:%d, %d times, %d bytes out, %d in", h.Decision, quote(h.Host, false), h.Port, h.Count, h.BytesOut, h.BytesIn))
	}
	for _, f := range r.FilesIn {
		line("in", fmt.Sprintf("%s %d bytes %s", quote(f.Path, false), f.Bytes, f.Digest))
	}
	for _, f := range r.FilesOut {
		line("out", fmt.Sprintf("%s %d bytes %s", quote(f.Path, false), f.Bytes, f.Digest))
	}
	line("left behind", leftBehind(r.Cleanup))
	line("audit log", fmt.Sprintf("%d lines, root %s", r.Audit.Log.Size, r.Audit.Log.Root))
	line("ledger", fmt.Sprintf("%d lines, root %s", r.Audit.Ledger.Size, r.Audit.Ledger.Root))
	return t.Flush()
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
