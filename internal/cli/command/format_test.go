package command

import (
	"bytes"
	"strings"
	"testing"
)

type item struct {
	ID, Name, Size string
	hidden         string // from templates
}

func (i item) Label(key string) string { return key + "=" + i.Size }

var itemColumns = Columns{Shown: 2, Fields: [][2]string{{"ID", "ITEM"}, {"Name", "NAME"}, {"Size", "SIZE"}}}

func TestPrintList(t *testing.T) {
	items := []item{{ID: "1", Name: "one", Size: "9MB", hidden: "x"}, {ID: "2", Name: "two", Size: "10MB"}}
	for _, c := range []struct {
		l    Listing
		want string
	}{
		{Listing{}, "ITEM   NAME\n1      one\n2      two\n"},
		{Listing{Format: "table"}, "ITEM   NAME\n1      one\n2      two\n"},
		{Listing{Format: `table {{.Name}}\t{{upper .Size}}`}, "NAME   SIZE\none    9MB\ntwo    10MB\n"},
		{Listing{Format: `table {{.Label "x"}}`}, "x\nx=9MB\nx=10MB\n"},
		{Listing{Format: "{{.Name}}:{{truncate .Size 1}}"}, "one:9\ntwo:1\n"},
		{Listing{Format: `{{.ID}}\t{{.Name}}`}, "1\tone\n2\ttwo\n"},
		{Listing{Format: "json"}, `{"ID":"1","Name":"one","Size":"9MB"}` + "\n" + `{"ID":"2","Name":"two","Size":"10MB"}` + "\n"},
		{Listing{Format: "{{json .Name}}"}, "\"one\"\n\"two\"\n"},
		{Listing{Quiet: true, Format: "json"}, "1\n2\n"},
	} {
		var out bytes.Buffer
		if err := PrintList(&out, items, c.l, itemColumns); err != nil || out.String() != c.want {
			t.Errorf("%+v: %v\n%q, want\n%q", c.l, err, out.String(), c.want)
		}
	}
	// A text cannot begin a row or a cell of its own.
	var out bytes.Buffer
	if err := PrintList(&out, []item{{ID: "1", Name: "a\tb\nc\x1b[2J"}}, Listing{}, itemColumns); err != nil || strings.Count(out.String(), "\n") != 2 || strings.ContainsAny(out.String(), "\t\x1b") {
		t.Errorf("%v\n%q", err, out.String())
	}
	// An error has no words of Go's, and nothing is printed before it.
	for format, want := range map[string]string{
		"table {{.Colour}}": "--format: there is no field .Colour; the fields are ID, Name, Size", "{{.ID}} {{.Colour}}": "--format: there is no field .Colour; the fields are ID, Name, Size",
		"{{.hidden}}": "the fields are ID, Name, Size", "table {{": "--format: ", "{{nothing .ID}}": "--format: ", "{{.ID.Colour}}": "--format: ", "{{truncate .ID}}": "--format: ", "table {{.ID}} {{truncate .Name}}": "--format: ",
		`{{.Name}} {{if eq .ID "2"}}{{index .ID 9}}{{end}}`: "--format: ",
	} {
		var out bytes.Buffer
		err := PrintList(&out, items, Listing{Format: format}, itemColumns)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "command.") || strings.Contains(err.Error(), "template: ") || out.Len() > 0 {
			t.Errorf("%s: %v; printed %q", format, err, out.String())
		}
	}
	// An unknown field is one also where there is nothing to print.
	for _, format := range []string{"table {{.Colour}}", "{{.Colour}}"} {
		if err := PrintList(&bytes.Buffer{}, []item(nil), Listing{Format: format}, itemColumns); err == nil {
			t.Error("an unknown field of an empty list is none")
		}
	}
	if err := PrintList(&bytes.Buffer{}, []item(nil), Listing{Format: "{{if gt 1 0}}{{len .ID}}{{end}}{{index .ID 0}}"}, itemColumns); err != nil {
		t.Errorf("what only rows can be asked: %v", err)
	}
}

func TestFiltersAreKnownOrRefused(t *testing.T) {
	keys := FilterKeys{"a": nil, "b": func(v string) error {
		if v != "yes" {
			return errValue
		}
		return nil
	}}
	f, err := keys.Parse([]string{"a=1", "a=2", "b=yes"})
	if err != nil || !f.Has("a") || len(f["a"]) != 2 {
		t.Fatalf("%v, %v", f, err)
	}
	for _, c := range []struct{ a, b, want bool }{{true, true, true}, {false, true, false}, {true, false, false}} {
		got := f.Match(map[string]func(string) bool{"a": func(v string) bool { return v == "2" && c.a }, "b": func(string) bool { return c.b }})
		if got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	for _, bad := range []string{"c=1", "a", "a=", "b=no"} {
		if _, err := keys.Parse([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

var errValue = errorString("want yes")

type errorString string

func (e errorString) Error() string { return string(e) }

// A field that is elsewhere in what is printed is answered with where.
func TestUnknownFieldIsAnsweredWithWhatIsThere(t *testing.T) {
	type inner struct{ State, Code string }
	type base struct{ Labels []string }
	type outer struct {
		base
		Status *inner
	}
	v := []any{outer{Status: &inner{}}, &outer{Status: &inner{}}}
	for format, want := range map[string]string{
		"{{.State}}": "here it is .Status.State", "{{.state}}": "here it is .Status.State", "{{.Colour}}": "the fields are Labels, Status", "{{.Status.Colour}}": "the fields are State, Code",
		"{{.Status.Labels}}": "here it is .Labels", "{{.Status.State.Code}}": "here it is .Status.Code",
	} {
		for i := range v {
			var out bytes.Buffer
			err := PrintEach(&out, v[i:i+1], "{{.Status}}"+format)
			if err == nil || !strings.HasSuffix(err.Error(), want) || out.Len() > 0 {
				t.Errorf("%s: %v; printed %q", format, err, out.String())
			}
		}
	}
}
