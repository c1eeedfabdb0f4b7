package command

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

var (
	// noField is how package text/template says that there is no such field, and
	// in which type.
	noField = regexp.MustCompile(`can't evaluate field (\w+) in type (.+)$|map has no entry for key "(\w+)"|: (\w+) is an unexported field of struct type (.+)$`)
	// inTemplate is how it says where.
	inTemplate = regexp.MustCompile(`^template: format:(\d+:)+ (executing "format" at )?`)
)

// formatError says of a template's error what a user can do about it. v is what
// was to be printed; names are its fields, where a list is documented by them.
func formatError(err error, v any, names []string) error {
	found := noField.FindStringSubmatch(err.Error())
	if found == nil {
		return fmt.Errorf("--format: %s", inTemplate.ReplaceAllString(err.Error(), ""))
	}
	field, in := found[1]+found[3]+found[4], found[2]+found[5]
	var elsewhere []string
	if names == nil {
		names, elsewhere = fieldsOf(reflect.ValueOf(v), field, in)
	}
	switch {
	case len(elsewhere) > 0:
		return fmt.Errorf("--format: there is no field .%s; here it is %s", field, strings.Join(elsewhere, " or "))
	case len(names) > 0:
		return fmt.Errorf("--format: there is no field .%s; the fields are %s", field, strings.Join(names, ", "))
	}
	return fmt.Errorf("--format: there is no field .%s; `--format json` prints all that there is", field)
}

// maxDepth is how deep a field that was named is looked for.
const maxDepth = 5

// fieldsOf gives the fields of the type in which one was missing, and where
// else in v it is.
func fieldsOf(v reflect.Value, field, in string) (names, elsewhere []string) {
	var walk func(t reflect.Type, path string, depth int)
	walk = func(t reflect.Type, path string, depth int) {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || depth > maxDepth {
			return
		}
		for _, f := range reflect.VisibleFields(t) {
			if !f.IsExported() || f.Anonymous { // what is in it is among the others
				continue
			}
			if here := path + "." + f.Name; strings.EqualFold(f.Name, field) {
				elsewhere = append(elsewhere, here)
			} else {
				walk(f.Type, here, depth+1)
			}
			if t.String() == strings.TrimPrefix(in, "*") && !slices.Contains(names, f.Name) {
				names = append(names, f.Name)
			}
		}
	}
	for v.IsValid() && v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if v.IsValid() {
		walk(v.Type(), "", 0)
	}
	slices.SortStableFunc(elsewhere, func(a, b string) int { return strings.Count(a, ".") - strings.Count(b, ".") })
	return names, elsewhere[:min(len(elsewhere), 3)]
}
