package scrub

import (
	"go/build"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNamesAreHTMLs holds the names against package html, and against the table
// in its source for those that are not there.
func TestNamesAreHTMLs(t *testing.T) {
	known := map[string]bool{strings.TrimPrefix(ligatureName, "&"): true}
	if got := html.UnescapeString(ligatureName); got != ligature {
		t.Errorf("%s is %q", ligatureName, got)
	}
	for b, names := range named {
		for _, name := range names {
			known[name] = true
			if got := html.UnescapeString("&" + name); got != string(rune(b)) {
				t.Errorf("&%s is %q, not %q", name, got, b)
			}
		}
	}
	source, err := os.ReadFile(filepath.Join(build.Default.GOROOT, "src/html/entity.go"))
	if err != nil {
		t.Skip("Go is here without its source")
	}
	found := 0
	for _, m := range regexp.MustCompile(`"([A-Za-z0-9]+;?)":`).FindAllStringSubmatch(string(source), -1) {
		text := html.UnescapeString("&" + m[1])
		if strings.ContainsFunc(text, func(r rune) bool { return r > 0x7f }) || strings.HasPrefix(text, "&") && len(text) > 1 {
			continue
		}
		if found++; !known[m[1]] {
			t.Errorf("&%s is %q, and is not looked for", m[1], text)
		}
	}
	if found < 50 {
		t.Errorf("only %d names were seen in package html's source", found)
	}
}

// FuzzReferences wants that nothing which a browser reads as the value passes.
func FuzzReferences(f *testing.F) {
	const value = `fj-A_9[x]&"<a>`
	for _, in := range []string{
		html.EscapeString(value), "&fjlig;&#0045;A&lowbar;9&lsqb;x&rbrack;&amp&quot&lt&#97&gt;", "&#x002D;&#0000045A",
		"&fjlig;-A&UnderBar;9&lbrack;x&rsqb;&AMP;&QUOT;&LT;a&GT;", "&#102;&#X6a-A_9[x]&#38&#34&#60&#x61;&#062",
	} {
		f.Add(in)
	}
	s, err := Compile(map[string]string{"value": value})
	if err != nil {
		f.Fatal(err)
	}
	tooMany := regexp.MustCompile(`&#[xX]?0{9}`)
	f.Fuzz(func(t *testing.T, in string) {
		got, _ := s.Text(in)
		if strings.Contains(html.UnescapeString(got), value) && !tooMany.MatchString(in) {
			t.Errorf("%q became %q, which a browser reads as the value", in, got)
		}
	})
}
