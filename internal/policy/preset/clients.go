package preset

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// ErrNoClient is in the chain of what [Reader.Run] returns for a program that is
// not installed.
var ErrNoClient = errors.New("it is not installed")

// ask gives what a tool itself says that it uses. Where the tool is not
// installed, or does not say, its settings are read instead; set says what to do
// where those name nothing either.
func (r Reader) ask(client func() ([]string, error), read func() ([]string, error), install, set string) ([]string, error) {
	err := ErrNoClient
	if r.Run != nil {
		var urls []string
		if urls, err = client(); err == nil && len(urls) > 0 {
			return urls, nil
		}
	}
	urls, unset := read()
	switch {
	case unset == nil, !errors.Is(unset, errUnset):
		return urls, unset
	case errors.Is(err, ErrNoClient):
		return nil, fmt.Errorf("%w, and %s; %s", unset, install, set)
	case err != nil:
		return nil, fmt.Errorf("%w, and the client does not say what it uses: %w; %s", unset, err, set)
	}
	return nil, fmt.Errorf("%w; %s", unset, set)
}

// askNPM asks for every registry at once: that of each scope as well.
func (r Reader) askNPM() ([]string, error) {
	out, err := r.Run("npm", "config", "list", "--json")
	if err != nil {
		return nil, err
	}
	var settings map[string]any // it holds tokens, and all but registries is dropped
	if json.Unmarshal([]byte(out), &settings) != nil {
		return nil, errors.New("`npm config list --json` is no JSON")
	}
	var urls []string
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		if url, ok := settings[key].(string); ok && url != "" && (key == "registry" || strings.HasPrefix(key, "@") && strings.HasSuffix(key, ":registry")) {
			urls = append(urls, url)
		}
	}
	return urls, nil
}

// pipIndexes has pip print the indexes that it knows by itself, each with the
// host that its files are on.
const pipIndexes = "from pip._internal.models import index as i\n" +
	"for p in (i.PyPI, i.TestPyPI): print(p.simple_url, p.file_storage_domain)"

// pipDefault finds the index in the help of pip, which shows the one in use.
var pipDefault = regexp.MustCompile(`(?s)--index-url <url>.*?\(default\s+(\S+?)\)`)

// askPip asks pip for its settings and, as they do not have what is nobody's
// setting, for the index that it uses then.
func (r Reader) askPip() ([]string, error) {
	python, list, err := r.python()
	if err != nil {
		return nil, err
	}
	index, others := pipSettings(list)
	known, internal := r.Run(python, "-c", pipIndexes)
	if index == "" && internal == nil {
		index, _, _ = strings.Cut(known, " ")
	}
	if index == "" { // a pip that keeps it elsewhere
		help, err := r.Run(python, "-m", "pip", "download", "--help")
		if err != nil {
			return nil, err
		}
		found := pipDefault.FindStringSubmatch(help)
		if found == nil {
			return nil, errors.New("`pip download --help` does not tell the default of --index-url")
		}
		index = found[1]
	}
	urls := append([]string{index}, others...)
	for line := range strings.Lines(known) {
		if url, files, ok := strings.Cut(strings.TrimSpace(line), " "); ok && internal == nil &&
			slices.ContainsFunc(urls, func(u string) bool { return strings.TrimRight(u, "/") == strings.TrimRight(url, "/") }) {
			urls = append(urls, files)
		}
	}
	return urls, nil
}

// python is an interpreter that has pip, with pip's settings.
func (r Reader) python() (name, settings string, err error) {
	for _, name := range []string{"python3", "python"} {
		var one error
		if settings, one = r.Run(name, "-m", "pip", "config", "list"); one == nil {
			return name, settings, nil
		}
		if err == nil || errors.Is(err, ErrNoClient) {
			err = one
		}
	}
	if strings.Contains(err.Error(), "No module named pip") {
		err = fmt.Errorf("%w: %w", ErrNoClient, err)
	}
	return "", "", err
}

// pipSettings reads what `pip config list` prints, KEY='VALUE' with Python's
// escapes. The environment comes last, and wins.
func pipSettings(list string) (index string, others []string) {
	var lines []string
	for _, env := range []bool{false, true} {
		for line := range strings.Lines(list) {
			if strings.HasPrefix(line, ":env:.") == env {
				lines = append(lines, line)
			}
		}
	}
	settings(lines, func(key, value string) {
		_, key, _ = strings.Cut(key, ".")
		for _, v := range strings.Fields(strings.ReplaceAll(value, `\n`, " ")) {
			switch {
			case key == "index-url":
				index = v
			case key == "extra-index-url" || key == "find-links" && strings.Contains(v, "://"):
				others = append(others, v)
			}
		}
	})
	return index, others
}

// askGo asks for the module proxies and the checksum database.
func (r Reader) askGo() ([]string, error) {
	out, err := r.Run("go", "env", "-json", "GOPROXY", "GOSUMDB")
	if err != nil {
		return nil, err
	}
	var values map[string]string
	if json.Unmarshal([]byte(out), &values) != nil {
		return nil, errors.New("`go env -json` is no JSON")
	}
	return goURLs(values)
}
