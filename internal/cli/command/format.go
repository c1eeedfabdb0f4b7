package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"creel/internal/printable"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// ShortID is the first twelve digits of a digest.
func ShortID(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(len(hex), 12)]
}

// Ago is a time as its distance from now.
func Ago(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "-"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

// Columns are the fields of a list's rows with their titles, in the order of
// the table that is printed where no format is given. A field without a place
// in that table comes behind Shown.
type Columns struct {
	Fields [][2]string // name in templates, title
	Shown  int         // how many the table has
}

// Listing says how a list is printed: the flags of every command that lists.
type Listing struct {
	Format      string
	Quiet, Long bool
}

// Register makes the flags known to a command.
func (l *Listing) Register(fs *pflag.FlagSet) {
	fs.StringVar(&l.Format, "format", "", "table, json, a Go `template` for each row, or \"table TEMPLATE\" for one with titles")
	fs.BoolVarP(&l.Quiet, "quiet", "q", false, "only IDs")
	fs.BoolVar(&l.Long, "no-trunc", false, "do not shorten")
}

// PrintList prints rows as the flags say. Rows have a field, or a method
// without arguments, for each of the columns' names, and ID among them.
func PrintList[T any](w io.Writer, rows []T, l Listing, c Columns) error {
	format := l.Format
	switch {
	case l.Quiet: // as Docker: whatever the format
		format = "{{.ID}}"
	case format == "" || format == "table":
		format = "table " + c.table()
	}
	body, isTable := strings.CutPrefix(format, "table ")
	if !isTable {
		if len(rows) == 0 && format != "json" { // a field that no row has is one here too
			if _, err := c.titles(body); err != nil && strings.Contains(err.Error(), "there is no field") {
				return err
			}
		}
		return printEach(w, rows, format, c.names())
	}
	// A shell passes \t on as two characters.
	body = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(strings.TrimSpace(body))
	t, err := parseFormat(body, functions)
	if err != nil {
		return err
	}
	titles, err := c.titles(body)
	if err != nil {
		return err
	}
	var all bytes.Buffer // what errs prints nothing
	out := tabwriter.NewWriter(&all, 0, 8, 3, ' ', 0)
	fmt.Fprintln(out, titles)
	for _, row := range rows {
		if err := execute(out, t, inOneCell(row), c.names()); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err = w.Write(all.Bytes())
	return err
}

// inOneCell is a row whose texts begin no other row or cell.
func inOneCell[T any](row T) T {
	if fields := reflect.ValueOf(&row).Elem(); fields.Kind() == reflect.Struct {
		for i := range fields.NumField() {
			if f := fields.Field(i); f.CanSet() && f.Kind() == reflect.String {
				f.SetString(printable.Line(f.String()))
			}
		}
	}
	return row
}

// table is the template of the usual table.
func (c Columns) table() string {
	var cells []string
	for _, f := range c.Fields[:c.Shown] {
		cells = append(cells, "{{."+f[0]+"}}")
	}
	return strings.Join(cells, "\t")
}

// titles are what a template makes of the titles of its fields, as Docker has
// it. A field that no row has is an error.
func (c Columns) titles(body string) (string, error) {
	plain := template.FuncMap{}
	for name := range functions {
		plain[name] = func(title string, _ ...any) string { return title }
	}
	t, err := parseFormat(body, plain)
	if err != nil {
		return "", err
	}
	titles := titles{}
	for _, f := range c.Fields {
		titles[f[0]] = f[1]
	}
	var out bytes.Buffer
	if err := t.Option("missingkey=error").Execute(&out, titles); err != nil {
		return "", formatError(err, titles, c.names())
	}
	return out.String(), nil
}

// titles has the title of each field. It is a type for the method that rows
// with labels have.
type titles map[string]string

// Label is the title of one label.
func (titles) Label(key string) string { return key }

func (c Columns) names() (names []string) {
	for _, f := range c.Fields {
		names = append(names, f[0])
	}
	return names
}

// functions are those of Docker's templates.
var functions = template.FuncMap{
	"json":  func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
	"join":  strings.Join,
	"split": strings.Split,
	"lower": strings.ToLower, "upper": strings.ToUpper,
	"title": func(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] },
	"truncate": func(s string, n int) string {
		if runes := []rune(s); n >= 0 && len(runes) > n {
			return string(runes[:n])
		}
		return s
	},
}

func parseFormat(format string, f template.FuncMap) (*template.Template, error) {
	t, err := template.New("format").Funcs(f).Parse(format)
	if err != nil {
		return nil, fmt.Errorf("--format: %s; want a Go template such as '{{.ID}}'", inTemplate.ReplaceAllString(err.Error(), ""))
	}
	return t, nil
}

func execute[T any](w io.Writer, t *template.Template, v T, names []string) error {
	if err := t.Execute(w, v); err != nil {
		return formatError(err, v, names)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// PrintEach prints values as JSON lines or by a Go template. What errs prints
// nothing.
func PrintEach[T any](w io.Writer, values []T, format string) error {
	return printEach(w, values, format, nil)
}

// printEach knows the names of the fields of a list's rows.
func printEach[T any](w io.Writer, values []T, format string, names []string) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := parseFormat(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format), functions)
	if err != nil {
		return err
	}
	var all bytes.Buffer
	for _, v := range values {
		if err := execute(&all, t, v, names); err != nil {
			return err
		}
	}
	_, err = w.Write(all.Bytes())
	return err
}

// PrintJSON prints a value as JSON for people to read.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
