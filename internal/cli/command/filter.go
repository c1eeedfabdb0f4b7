package command

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Filters holds --filter values: of one key any may match, of each key one must.
type Filters map[string][]string

// FilterKeys are the keys that a list knows, each with a check of its values;
// nil: every value is one.
type FilterKeys map[string]func(value string) error

// Names are the keys, for people.
func (k FilterKeys) Names() string { return strings.Join(slices.Sorted(maps.Keys(k)), ", ") }

// Parse reads KEY=VALUE flags. An unknown key or value is an error: a filter
// that is silently empty lists what nobody meant.
func (k FilterKeys) Parse(list []string) (Filters, error) {
	out := Filters{}
	for _, f := range list {
		key, value, ok := strings.Cut(f, "=")
		check, known := k[key]
		switch {
		case !known:
			return nil, fmt.Errorf("--filter %q: want KEY=VALUE with one of %s", f, k.Names())
		case !ok || value == "":
			return nil, fmt.Errorf("--filter %q: want %s=VALUE", f, key)
		}
		if check != nil {
			if err := check(value); err != nil {
				return nil, fmt.Errorf("--filter %q: %w", f, err)
			}
		}
		out[key] = append(out[key], value)
	}
	return out, nil
}

// Has tells whether a key was given.
func (f Filters) Has(key string) bool { return len(f[key]) > 0 }

// Match asks the test of each key that was given.
func (f Filters) Match(tests map[string]func(value string) bool) bool {
	for key, values := range f {
		if len(values) > 0 && !slices.ContainsFunc(values, tests[key]) {
			return false
		}
	}
	return true
}
