// Package preset gives the rules that common tools need. [Reader.Rules] makes
// those of one preset. Hosts of package registries are asked of the user's own
// tools, or read from their settings, so that a preset follows a mirror; the
// package itself must not name one, and must not touch files, programs, the
// network or the environment but through the lookups that it is given.
package preset

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"creel/internal/policy"
)

// Reader is how a preset sees the user's settings.
type Reader struct {
	// Env gives a variable, "" for none.
	Env func(name string) string
	// Files gives the contents of the files that a pattern matches, in the
	// order of their names; none is not an error. "~/" is the user's home.
	Files func(pattern string) ([][]byte, error)
	// Run gives what a program of the user's prints, away from any project whose
	// settings could be somebody else's. Its error has [ErrNoClient] in its
	// chain where there is no such program. nil: none is asked.
	Run func(program string, args ...string) (string, error)
}

// named are presets whose hosts are the same for everybody.
var named = map[string][]string{
	"github":     {"github.com", "github.com:22", "api.github.com", "codeload.github.com"},
	"gitlab":     {"gitlab.com", "gitlab.com:22"},
	"bitbucket":  {"bitbucket.org", "bitbucket.org:22", "api.bitbucket.org"},
	"codeberg":   {"codeberg.org", "codeberg.org:22"},
	"anthropic":  {"api.anthropic.com"},
	"openai":     {"api.openai.com"},
	"google-ai":  {"generativelanguage.googleapis.com"},
	"mistral":    {"api.mistral.ai"},
	"deepseek":   {"api.deepseek.com"},
	"openrouter": {"openrouter.ai"},
}

// groups are presets of presets.
var groups = map[string][]string{
	"git":    {"github", "gitlab", "bitbucket", "codeberg"},
	"models": {"anthropic", "openai", "google-ai", "mistral", "deepseek", "openrouter"},
}

// Names lists every preset.
func Names() (names []string) {
	names = []string{"apt", "go", "npm", "pip"}
	for n := range named {
		names = append(names, n)
	}
	for n := range groups {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Rules are those of one preset. Its errors say what to set where a tool's
// settings name no registry.
func (r Reader) Rules(name string) ([]policy.Rule, error) {
	var dests []string
	var err error
	switch name {
	case "npm":
		dests, err = r.ask(r.askNPM, r.npm, "npm is not installed here to be asked", "install it, or write `registry=URL` in ~/.npmrc")
	case "pip":
		dests, err = r.ask(r.askPip, r.pip, "pip is not installed here to be asked", "install it, or set PIP_INDEX_URL to the index that you use")
	case "go":
		dests, err = r.ask(r.askGo, r.goModules, "go is not installed here to be asked", "install it, or set GOPROXY to the proxy that you use; preset git is for direct downloads")
	case "apt":
		dests, err = r.apt()
	default:
		members := groups[name]
		if named[name] != nil {
			members = []string{name}
		}
		if members == nil {
			return nil, fmt.Errorf("preset %.60q is not known; the presets are %s", name, strings.Join(Names(), ", "))
		}
		for _, m := range members {
			dests = append(dests, named[m]...)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("preset %s: %w", name, err)
	}
	return rules(name, dests)
}

// rules makes rules of HOST, HOST:PORT and URLs; of equals one.
func rules(name string, dests []string) (out []policy.Rule, err error) {
	for _, dest := range dests {
		if !strings.Contains(dest, "://") {
			scheme, port := "https://", ""
			if _, port, _ = strings.Cut(dest, ":"); port != "" {
				scheme = "tcp://"
			}
			dest = scheme + dest
		}
		rule, rerr := ruleOf(name, dest)
		if rerr != nil {
			err = errors.Join(err, fmt.Errorf("preset %s: %w", name, rerr))
			continue
		}
		if !slices.ContainsFunc(out, func(o policy.Rule) bool { return o.Name == rule.Name }) {
			out = append(out, rule)
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func ruleOf(preset, dest string) (rule policy.Rule, err error) {
	u, err := url.Parse(dest)
	if err != nil {
		return rule, errors.New("the settings hold a URL that cannot be read") // not shown: it may hold a password
	}
	port := map[string]string{"https": "443", "http": "80", "tcp": ""}[u.Scheme]
	if u.Port() != "" {
		port = u.Port()
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return rule, fmt.Errorf("the settings name %s://%s, which is neither https nor http", u.Scheme, u.Hostname())
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil || u.Hostname() == "localhost" {
		return rule, fmt.Errorf("the settings name %s, which is no name that a sandbox can reach; write a rule with `upstream:`, or for %s", u.Hostname(), policy.HostAlias)
	}
	host, err := policy.CleanHost(u.Hostname())
	if err != nil {
		return rule, err
	}
	p := uint16(n)
	rule = policy.Rule{
		Name: fmt.Sprintf("preset %s: %s:%d", preset, host, p), Host: host, Ports: []policy.PortRange{{First: p, Last: p}},
		Protocol: map[string]policy.Protocol{"https": policy.TLS, "http": policy.HTTP, "tcp": policy.TCP}[u.Scheme],
	}
	return rule, nil
}

var errUnset = errors.New("the settings name no registry")

// files joins what patterns match.
func (r Reader) files(patterns ...string) (lines []string, err error) {
	for _, p := range patterns {
		contents, err := r.Files(p)
		if err != nil {
			return nil, err
		}
		for _, data := range contents {
			lines = append(lines, strings.Split(string(data), "\n")...)
		}
	}
	return lines, nil
}

// settings reads KEY = VALUE lines; a comment is dropped, quotes are too.
func settings(lines []string, use func(key, value string)) {
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			use(strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"'`))
		}
	}
}

// npm reads registry and @scope:registry.
func (r Reader) npm() (urls []string, err error) {
	lines, err := r.files("/etc/npmrc", "/usr/etc/npmrc", "~/.npmrc")
	if err != nil {
		return nil, err
	}
	byScope := map[string]string{}
	settings(lines, func(key, value string) {
		if key == "registry" || strings.HasPrefix(key, "@") && strings.HasSuffix(key, ":registry") {
			byScope[key] = value // npm's later files win
		}
	})
	for _, env := range []string{"NPM_CONFIG_REGISTRY", "npm_config_registry"} {
		if v := r.Env(env); v != "" {
			byScope["registry"] = v
		}
	}
	if byScope["registry"] == "" {
		return nil, errUnset
	}
	for _, v := range byScope {
		urls = append(urls, v)
	}
	slices.Sort(urls)
	return urls, nil
}

// pip reads index-url, extra-index-url and find-links.
func (r Reader) pip() (urls []string, err error) {
	lines, err := r.files("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
	if err != nil {
		return nil, err
	}
	index, key := "", ""
	take := func(k, value string) {
		for _, v := range strings.Fields(value) {
			switch {
			case k == "index-url":
				index = v
			case k == "extra-index-url" || k == "find-links" && strings.Contains(v, "://"):
				urls = append(urls, v)
			}
		}
	}
	for _, line := range lines {
		if strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t") {
			take(key, line) // a value may go on in indented lines
			continue
		}
		settings([]string{line}, func(k, v string) {
			key = strings.ReplaceAll(k, "_", "-")
			take(key, v)
		})
	}
	take("index-url", r.Env("PIP_INDEX_URL"))
	take("extra-index-url", r.Env("PIP_EXTRA_INDEX_URL"))
	take("find-links", r.Env("PIP_FIND_LINKS"))
	if index == "" {
		return nil, errUnset
	}
	return append([]string{index}, urls...), nil
}

// goModules reads GOPROXY and GOSUMDB.
func (r Reader) goModules() (urls []string, err error) {
	lines, err := r.files("~/.config/go/env")
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	settings(lines, func(k, v string) { values[k] = v })
	for _, k := range []string{"GOPROXY", "GOSUMDB"} {
		if v := r.Env(k); v != "" {
			values[k] = v
		}
	}
	return goURLs(values)
}

// goURLs are the proxies and the checksum database of Go's settings.
func goURLs(values map[string]string) (urls []string, err error) {
	for _, v := range strings.FieldsFunc(values["GOPROXY"], func(c rune) bool { return c == ',' || c == '|' }) {
		if v != "direct" && v != "off" && !strings.HasPrefix(v, "file:") {
			urls = append(urls, v)
		}
	}
	if len(urls) == 0 {
		return nil, errUnset
	}
	// NAME[+KEY] [URL]
	if fields := strings.Fields(values["GOSUMDB"]); len(fields) > 0 && fields[0] != "off" {
		name, _, _ := strings.Cut(fields[0], "+")
		if len(fields) > 1 {
			name = fields[1]
		}
		urls = append(urls, name)
	}
	return urls, nil
}

var aptURL = regexp.MustCompile(`^https?://\S+$`)

// apt reads one-line sources and deb822 ones.
func (r Reader) apt() (urls []string, err error) {
	lines, err := r.files("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources")
	if err != nil {
		return nil, err
	}
	inURIs := false
	for _, line := range lines {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
			continue
		case fields[0] == "deb" || fields[0] == "deb-src":
		case strings.EqualFold(fields[0], "URIs:"):
			inURIs = true
		case line[0] == ' ' || line[0] == '\t':
			if !inURIs {
				continue
			}
		default:
			inURIs = false
			continue
		}
		for _, f := range fields {
			if aptURL.MatchString(f) && !slices.Contains(urls, f) {
				urls = append(urls, f)
			}
		}
	}
	if len(urls) == 0 {
		return nil, fmt.Errorf("%w; add a source to /etc/apt/sources.list", errUnset)
	}
	return urls, nil
}
