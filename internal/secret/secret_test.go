package secret_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	. "creel/internal/secret"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const plain = "s3cr3t-of-the-test"

func value(t testing.TB, s string) Value {
	t.Helper()
	v, err := NewValue(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// leaks reports whether a text holds the value in any way a printer may write.
func leaks(text string) bool {
	for _, form := range []string{"%s", "%q", "%x", "%X", "%v", "%d"} {
		if strings.Contains(text, strings.Trim(fmt.Sprintf(form, []byte(plain)), `[]"`)) {
			return true
		}
	}
	return strings.Contains(text, "czNjcjN0LW9m")
}

type outer struct {
	Exported Value
	inner    Value
	Pointer  *Value
	Map      map[string]Value
	Slice    []Value
	Any      any
}

func everywhere(t *testing.T) []any {
	v := value(t, plain)
	o := outer{v, v, &v, map[string]Value{"k": v}, []Value{v}, v}
	g := Grant{Name: "n", Value: v}
	return []any{v, &v, o, &o, []any{v, o}, map[string]any{"v": v}, map[string]outer{"o": o}, g, []Grant{g}, [1]Value{v}, struct{ v *outer }{&o}}
}

func TestNoVerbPrintsAValue(t *testing.T) {
	for _, x := range everywhere(t) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#q", "%d", "%T", "%p", "%t", "%08.3f", "%c", "%U", "%b", "%z"} {
			if out := fmt.Sprintf(verb, x); leaks(out) {
				t.Errorf("%s of %T is %q", verb, x, out)
			}
		}
		for _, out := range []string{fmt.Sprint(x), fmt.Sprintln(x), fmt.Errorf("error: %v", x).Error(), errors.Join(fmt.Errorf("%s", x)).Error()} {
			if leaks(out) {
				t.Errorf("%T is printed as %q", x, out)
			}
		}
	}
	v := value(t, plain)
	for _, out := range []string{v.String(), v.GoString(), fmt.Sprintf("%s", v), fmt.Sprintf("%d", v), "" + fmt.Sprint(&v)} {
		if out != "[secret]" {
			t.Errorf("printed as %q", out)
		}
	}
	if !leaks(fmt.Sprintf("%x", plain)) || !leaks(plain) {
		t.Error("this test does not know a leak when it sees one")
	}
}

func TestNoEncodingHoldsAValue(t *testing.T) {
	for _, x := range everywhere(t) {
		out, err := json.Marshal(x)
		if err != nil || leaks(string(out)) {
			t.Errorf("JSON of %T: %s, %v", x, out, err)
		}
		if out, err = yaml.Marshal(x); err != nil || leaks(string(out)) {
			t.Errorf("YAML of %T: %s, %v", x, out, err)
		}
		if out, _ = xml.Marshal(x); leaks(string(out)) {
			t.Errorf("XML of %T: %s", x, out)
		}
		var b bytes.Buffer
		_ = gob.NewEncoder(&b).Encode(x)
		if leaks(b.String()) {
			t.Errorf("gob of %T holds it", x)
		}
	}
	v := value(t, plain)
	if out, err := json.Marshal(struct{ V Value }{v}); err != nil || string(out) != `{"V":"[secret]"}` {
		t.Errorf("JSON %s, %v", out, err)
	}
	if out, err := yaml.Marshal(struct{ V Value }{v}); err != nil || string(out) != "v: '[secret]'\n" {
		t.Errorf("YAML %s, %v", out, err)
	}
	if text, err := v.MarshalText(); err != nil || string(text) != "[secret]" {
		t.Errorf("text %s, %v", text, err)
	}
	if _, err := v.MarshalBinary(); err == nil {
		t.Error("binary is not refused")
	}
	if err := gob.NewEncoder(&bytes.Buffer{}).Encode(v); err == nil {
		t.Error("gob is not refused")
	}
	if err := json.Unmarshal([]byte(`{"V":"`+plain+`"}`), &struct{ V Value }{}); err == nil || leaks(err.Error()) {
		t.Errorf("JSON is read: %v", err)
	}
}

func TestNoLogHoldsAValue(t *testing.T) {
	var b bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		for _, x := range everywhere(t) {
			slog.New(h).With("with", x).WithGroup("g").Info("message", "value", x, slog.Group("h", "x", x), "err", fmt.Errorf("e: %v", x))
		}
	}
	if leaks(b.String()) {
		t.Error(b.String())
	}
	if !strings.Contains(b.String(), `value=[secret]`) || !strings.Contains(b.String(), `"value":"[secret]"`) {
		t.Errorf("a log does not say that there was one: %s", b.String())
	}
}

func TestValues(t *testing.T) {
	for _, s := range []string{"12345678", strings.Repeat("x", MaxBytes), "line\nline", "with \xff bytes"} {
		if v := value(t, s); v.Reveal() != s {
			t.Errorf("%.20q comes back as %.20q", s, v.Reveal())
		}
	}
	for s, want := range map[string]string{
		"": "at least 8", "1234567": "at least 8", strings.Repeat("x", MaxBytes+1): "more than 16384", "nul\x00in it": "NUL",
	} {
		if _, err := NewValue(s); err == nil || !strings.Contains(err.Error(), want) || s != "" && strings.Contains(err.Error(), s) {
			t.Errorf("%.20q: %v", s, err)
		}
	}
	if (Value{}).Reveal() != "" || fmt.Sprint(Value{}) != "[secret]" {
		t.Error("the zero Value is something")
	}
	if a, b := value(t, plain), value(t, plain); !a.Equal(b) || a.Equal(value(t, plain+"x")) {
		t.Error("Equal does not compare values")
	}
}

func TestBindingFaults(t *testing.T) {
	bind := func(use Use) Binding { return Binding{Hosts: []string{"api.test"}, Use: use} }
	for name, c := range map[string]struct {
		b    Binding
		want []string // none: it is right
	}{
		"bearer":        {bind(Use{As: AsBearer}), nil},
		"header":        {bind(Use{As: AsHeader, Name: "X-Api-Key"}), nil},
		"header prefix": {bind(Use{As: AsHeader, Name: "Authorization", Prefix: "token "}), nil},
		"basic":         {bind(Use{As: AsBasic, User: "x-access-token"}), nil},
		"basic no user": {bind(Use{As: AsBasic}), nil},
		"query":         {bind(Use{As: AsQuery, Name: "api_key"}), nil},
		"stand-in":      {bind(Use{As: AsStandIn, Env: "API_KEY", File: "/run/key", In: []string{"header:X-Key", "query:key"}}), nil},
		"all of it": {Binding{Hosts: []string{"a.test", "*.b.test", "**.c.test"}, Methods: []string{"GET"}, Paths: []string{"/v1/**"},
			Use: Use{As: AsBearer}}, nil},
		"nothing":      {Binding{}, []string{"hosts: 0", "as: \"\""}},
		"every host":   {Binding{Hosts: []string{"**"}, Use: Use{As: AsBearer}}, []string{"every host"}},
		"bad hosts":    {Binding{Hosts: []string{"A.test", "a.*.test", "*", "a test", "a..b", ""}, Use: Use{As: AsBearer}}, []string{`"A.test"`, `"a.*.test"`, `"*"`, `"a test"`, `"a..b"`, `hosts: ""`}},
		"bad lists":    {Binding{Hosts: []string{"a.test"}, Methods: []string{"get"}, Paths: []string{"v1"}, Use: Use{As: AsBearer}}, []string{`methods: "get"`, `paths: "v1"`}},
		"unknown":      {bind(Use{As: "cookie"}), []string{"as: \"cookie\": want header"}},
		"no header":    {bind(Use{As: AsHeader}), []string{"name: header"}},
		"host header":  {bind(Use{As: AsHeader, Name: "Host"}), []string{"cannot carry"}},
		"break":        {bind(Use{As: AsHeader, Name: "X", Prefix: "a\r\nb"}), []string{"prefix:"}},
		"no parameter": {bind(Use{As: AsQuery}), []string{"name: parameter"}},
		"ampersand":    {bind(Use{As: AsQuery, Name: "a&b"}), []string{"name: parameter"}},
		"colon":        {bind(Use{As: AsBasic, User: "a:b"}), []string{"user:"}},
		"nowhere":      {bind(Use{As: AsStandIn}), []string{"env: a stand-in needs"}},
		"places":       {bind(Use{As: AsStandIn, Env: "A-B", File: "../x", In: []string{"body:x", "header:", "header:Host"}}), []string{"env: \"A-B\"", "file:", `"body:x"`, `"header:"`, `"header:Host"`}},
		"unused":       {bind(Use{As: AsBearer, Name: "a", Prefix: "b", User: "c", Env: "D", File: "/e", In: []string{"header:F"}}), []string{"name:", "prefix:", "user:", "env:", "file:", "in:"}},
	} {
		err := c.b.Validate()
		if (err == nil) != (len(c.want) == 0) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v does not say %q", name, err, w)
			}
		}
	}
}

// A secret that has a CA goes to an upstream by that alone, and to the host
// itself by the system's.
func TestWhereASecretMayGo(t *testing.T) {
	b := Binding{Hosts: []string{"api.test"}, Upstreams: []string{"gw.test:443"}, CA: "PEM"}
	for _, c := range []struct{ upstream, ca, want string }{
		{"", "", ""}, {"gw.test:443", "PEM", ""}, {"GW.test:443", "", "`ca:`"}, {"gw.test:443", "other", "--upstream-ca"}, {"gw.test:80", "PEM", "--upstream gw.test:80"},
	} {
		err := b.MayGo(c.upstream, c.ca, false)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q by %q: %v, want %q", c.upstream, c.ca, err, c.want)
		}
	}
}

func TestGrantFaults(t *testing.T) {
	b := Binding{Hosts: []string{"a.test"}, Use: Use{As: AsBearer}}
	standIn := Binding{Hosts: []string{"a.test"}, Use: Use{As: AsStandIn, Env: "K"}}
	query := Binding{Hosts: []string{"a.test"}, Use: Use{As: AsQuery, Name: "k"}}
	for name, c := range map[string]struct {
		g    Grant
		want string
	}{
		"right":            {Grant{"n", value(t, plain), b, ""}, ""},
		"right stand-in":   {Grant{"n", value(t, plain), standIn, "other-of-the-test"}, ""},
		"lines in a query": {Grant{"n", value(t, plain+"\nx"), query, ""}, ""},
		"name":             {Grant{"-n", value(t, plain), b, ""}, "secret name"},
		"no value":         {Grant{"n", Value{}, b, ""}, "value: there is none"},
		"lines":            {Grant{"n", value(t, plain+"\nx"), b, ""}, "line breaks"},
		"blank":            {Grant{"n", value(t, plain+" "), b, ""}, "blanks"},
		"no stand-in":      {Grant{"n", value(t, plain), standIn, ""}, "stand-in:"},
		"needless":         {Grant{"n", value(t, plain), b, "other"}, "stand-in:"},
		"the value":        {Grant{"n", value(t, plain), standIn, "x" + plain}, "holds the value"},
	} {
		err := c.g.Validate()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || leaks(err.Error())) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestGrantsGoThroughAPipe(t *testing.T) {
	grants := []Grant{
		{"a", value(t, plain), Binding{Hosts: []string{"a.test"}, Methods: []string{"GET"}, Paths: []string{"/x"}, Use: Use{As: AsHeader, Name: "X", Prefix: "p "}}, ""},
		{"b", value(t, "bytes \xff\xfe <&>"), Binding{Hosts: []string{"*.b.test"}, Use: Use{As: AsStandIn, Env: "B", In: []string{"header:X"}}}, "bytes-of-others"},
	}
	var b bytes.Buffer
	for _, g := range [][]Grant{grants, {}} {
		if err := WriteGrants(&b, g); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("what follows")
	for _, want := range [][]Grant{grants, {}} {
		got, err := ReadGrants(&b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	if b.String() != "what follows" {
		t.Errorf("left in the pipe: %q", b.String())
	}
	if err := WriteGrants(&b, make([]Grant, 257)); err == nil {
		t.Error("any number of secrets is passed")
	}
}

func frame(body string) []byte {
	return append([]byte{0, 0, byte(len(body) >> 8), byte(len(body))}, body...)
}

func TestGrantsAreReadStrictly(t *testing.T) {
	entry := `{"name":"a","value":"czNjcjN0LW9mLXRoZS10ZXN0","binding":{"hosts":["a.test"],"use":{"as":"bearer"}}}`
	if _, err := ReadGrants(bytes.NewReader(frame(`{"version":1,"grants":[` + entry + `]}`))); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"nothing":  nil,
		"short":    {0, 0, 0, 9, '{'},
		"too long": {0xff, 0xff, 0xff, 0xff, '{'},
		"version":  frame(`{"version":2,"grants":[]}`),
		"unknown":  frame(`{"version":1,"grants":[],"s3cr3t-of-the-test":1}`),
		"type":     frame(`{"version":1,"grants":["s3cr3t-of-the-test"]}`),
		"more":     frame(`{"version":1,"grants":[]}{}`),
		"twice":    frame(`{"version":1,"grants":[` + entry + `,` + entry + `]}`),
		"invalid":  frame(`{"version":1,"grants":[` + strings.Replace(entry, "bearer", "s", 1) + `]}`),
		"no value": frame(`{"version":1,"grants":[{"name":"a","binding":{"hosts":["a.test"],"use":{"as":"bearer"}}}]}`),
	} {
		if g, err := ReadGrants(bytes.NewReader(data)); err == nil || g != nil || leaks(err.Error()) {
			t.Errorf("%s: %v, %v", name, g, err)
		}
	}
}

func FuzzReadGrants(f *testing.F) {
	f.Add(frame(`{"version":1,"grants":[{"name":"a","value":"czNjcjN0LW9mLXRoZS10ZXN0","binding":{"hosts":["a.test"],"use":{"as":"bearer"}}}]}`))
	f.Add(frame(`{"version":1,"grants":[]}`))
	f.Add([]byte{0, 0, 0, 9, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		grants, err := ReadGrants(bytes.NewReader(data))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteGrants(&b, grants); err != nil {
			t.Fatal(err)
		}
		again, err := ReadGrants(&b)
		if err != nil || !cmp.Equal(grants, again) {
			t.Fatalf("%v becomes %v, %v", grants, again, err)
		}
	})
}
