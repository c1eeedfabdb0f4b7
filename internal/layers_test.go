// Package internal holds only this test: who may import whom. It also prints
// what has grown large. A new package, or a new arrow between two, is one line in
// [arrows]; that line is what a reviewer looks at. The test must not know what
// the packages do.
package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// arrows maps each package to the packages of ours that it may import, leaving
// out test files. Names are relative to internal/, but for cmd/ and test/.
var arrows = map[string][]string{
	// Words, and tools that know nothing of sandboxes.
	"sandbox":  {},
	"undo":     {},
	"wire":     {},
	"audit":    {"audit/batch", "audit/chain", "durable"},
	"policy":   {},
	"confine":  {"procs", "sandbox"},
	"scratch":  {"environ"},
	"archive":  {"diskroom", "printable"},
	"kernel":   {"durable", "environ", "undo"},
	"secret":   {},
	"environ":  {},
	"diskroom": {},

	// Files that processes share, and the processes themselves.
	"durable": {},
	"procs":   {},

	// What is safe to show.
	"printable":  {},
	"postmortem": {},

	// Where secrets come from.
	"secret/store": {"durable", "policy", "secret"},

	// What may happen: tiers and presets are made of rules.
	"policy/syntax": {"policy"},
	"policy/tier":   {"policy", "policy/syntax"},
	"policy/preset": {"policy"},

	// The audit record: its format, and what reads it.
	"audit/chain":   {},
	"audit/batch":   {"audit/chain"},
	"audit/query":   {"audit", "audit/chain"},
	"audit/receipt": {"audit/chain"},
	"audit/event":   {"audit"},
	"audit/summary": {"audit", "audit/event", "audit/query", "audit/receipt"},

	// Images.
	"image":           {"image/blobs", "image/flatten", "image/registry", "undo"},
	"image/blobs":     {"durable", "undo"},
	"image/flatten":   {},
	"image/imagetest": {},
	"image/registry":  {},

	// Machines.
	"vm":              {"sandbox"},
	"vm/accel":        {"confine", "durable", "procs", "sandbox", "vm"},
	"vm/qemu":         {"confine", "environ", "guest/api", "postmortem", "procs", "sandbox", "undo", "vm"},
	"vm/vmtest":       {"guest/api", "procs", "sandbox", "vm"},
	"vm/vmtest/guest": {},

	// Both ends of the control port.
	"guest/api":       {"sandbox"},
	"guest/agent":     {"guest/api", "sandbox", "wire"},
	"guest/host":      {"guest/api", "printable", "sandbox", "wire"},
	"guest/blob":      {},
	"guest/machine":   {"guest/api", "sandbox"},
	"cmd/creel-guest": {"guest/agent", "guest/api", "guest/machine"},

	// One sandbox's edge: boundary puts the parts together, which know nothing
	// of one another.
	"boundary": {"audit", "audit/event", "boundary/credential", "boundary/egress", "boundary/hello", "boundary/intercept", "boundary/names",
		"boundary/netstack", "boundary/web", "policy", "policy/tier", "sandbox", "secret"},
	"boundary/canary":                {},
	"boundary/credential":            {"boundary/scrub", "policy", "secret"},
	"boundary/decode":                {},
	"boundary/egress":                {"policy"},
	"boundary/framing":               {},
	"boundary/hello":                 {},
	"boundary/intercept":             {},
	"boundary/names":                 {"policy"},
	"boundary/netstack":              {},
	"boundary/netstack/netstacktest": {"procs"},
	"boundary/scrub":                 {},
	"boundary/web":                   {"boundary/decode", "boundary/framing", "boundary/scrub", "boundary/wsframe"},
	"boundary/wsframe":               {},

	// One run, and what it starts from.
	"template/content": {"durable", "vm"},
	"template/holder":  {"confine", "durable", "procs", "sandbox", "template/content", "undo", "vm"},
	"template": {"confine", "durable", "guest/api", "guest/host", "kernel", "sandbox", "template/content", "template/holder",
		"undo", "vm"},
	"keeper": {"audit", "audit/event", "boundary", "boundary/canary", "boundary/credential", "confine", "diskroom", "guest/api", "guest/host",
		"keeper/launch", "keeper/rundir", "keeper/socket", "policy/syntax", "policy/tier", "procs", "sandbox", "secret", "undo", "vm", "wire"},
	"keeper/launch": {"audit", "keeper/socket", "sandbox", "secret", "vm"},
	"keeper/rundir": {"sandbox"},
	"keeper/socket": {"guest/api", "guest/host", "keeper/rundir", "procs", "sandbox", "secret", "wire"},

	// From the door to the keeper.
	"standby":        {"durable", "keeper/launch", "keeper/socket", "procs", "sandbox", "scratch"},
	"engine/process": {"image", "sandbox"},
	"engine/store":   {"durable", "keeper/launch", "keeper/rundir", "sandbox"},
	"engine": {"audit", "audit/chain", "audit/event", "audit/receipt", "audit/summary", "diskroom", "durable", "engine/process", "engine/store", "environ", "image", "keeper/launch", "keeper/rundir", "keeper/socket",
		"policy", "policy/syntax", "policy/tier", "postmortem", "procs", "sandbox", "scratch", "secret", "standby", "template", "undo", "vm", "vm/accel"},
	"config": {"sandbox"},
	"doctor": {"diskroom", "environ", "kernel", "sandbox", "template", "vm/accel"},
	"cli": {"archive", "audit", "cli/auditcmd", "cli/command", "cli/hostcmd", "cli/imagecmd", "cli/manual", "cli/policycmd", "cli/secretcmd", "config", "doctor", "engine", "engine/process", "guest/api", "guest/host",
		"image", "image/registry", "keeper/rundir", "keeper/socket", "kernel", "policy/preset", "policy/tier", "printable", "sandbox", "secret", "secret/store", "template", "vm"},
	"cli/command":   {"printable"},
	"cli/hostcmd":   {"cli/command", "config", "doctor", "kernel", "printable"},
	"cli/imagecmd":  {"cli/command", "image", "image/registry", "printable"},
	"cli/manual":    {"cli/command"},
	"cli/policycmd": {"cli/command", "policy", "policy/preset", "policy/syntax", "sandbox", "secret"},
	"cli/secretcmd": {"audit", "audit/event", "audit/query", "cli/command", "secret", "secret/store"},
	"cli/auditcmd":  {"audit", "audit/chain", "audit/event", "audit/query", "audit/receipt", "audit/summary", "cli/command", "printable"},
	"app": {"audit", "audit/event", "boundary/egress", "cli", "cli/hostcmd", "confine", "config", "doctor", "durable", "engine", "engine/store", "environ", "guest/blob", "guest/host", "image",
		"image/registry", "keeper", "keeper/launch", "keeper/socket", "kernel", "policy/tier", "printable", "procs", "sandbox", "scratch", "secret/store", "standby", "template", "template/holder", "vm",
		"vm/accel", "vm/qemu"},
	"cmd/creel": {"app"},

	// Programs and helpers for tests.
	"test/images":         {},
	"test/rig":            {"procs"},
	"test/clients/packet": {},
	"test/clients/probe":  {"test/clients/packet"},
	"test/clients/gohttp": {},
	"test/bench": {"audit", "audit/chain", "audit/event", "confine", "guest/api", "guest/blob", "guest/host", "kernel", "policy", "policy/syntax", "procs", "sandbox", "scratch", "template",
		"template/content", "test/bench/docker", "test/bench/network", "test/images", "undo", "vm", "vm/qemu"},
	"test/bench/docker": {},
	"test/bench/network": {"audit", "boundary", "boundary/credential", "boundary/egress", "boundary/intercept", "boundary/names", "guest/host", "policy/syntax", "procs", "sandbox",
		"secret", "undo", "vm", "vm/qemu"},

	// What `make demo` and `make dist` run.
	"scripts/demoapi": {"boundary/intercept"},
	"scripts/manual":  {"cli", "cli/manual"},
	"scripts/sbom":    {},
}

// From these sizes on TestSizes prints a name. They are not limits: code is cut
// where its subject changes, not where a number says so.
const (
	largeFunction = 80   // lines
	largeFile     = 600  // lines
	largePackage  = 2000 // lines, without tests
	manyArguments = 5    // without the receiver
)

// goPackage is the parsed code of one directory, without its tests.
type goPackage struct {
	name  string // as in arrows
	main  bool   // a program
	files map[string]*ast.File
}

func TestArrows(t *testing.T) {
	packages, _ := parseAll(t)
	for _, p := range packages {
		allowed, known := arrows[p.name]
		if !known {
			t.Errorf("package %s is not in the table: add it with the imports that it may have", p.name)
			continue
		}
		for file, syntax := range p.files {
			for _, spec := range syntax.Imports {
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				ours, ok := strings.CutPrefix(imported, "creel/")
				if ours = strings.TrimPrefix(ours, "internal/"); ok && !slices.Contains(allowed, ours) {
					t.Errorf("%s: package %s may not import %s", file, p.name, ours)
				}
			}
		}
	}
	for name := range arrows {
		if !slices.ContainsFunc(packages, func(p goPackage) bool { return p.name == name }) {
			t.Errorf("the table has package %s, which is not there", name)
		}
	}
}

func TestPackageComments(t *testing.T) {
	packages, _ := parseAll(t)
	for _, p := range packages {
		var comments []string
		for _, f := range p.files {
			if f.Doc != nil {
				comments = append(comments, strings.Join(strings.Fields(f.Doc.Text()), " "))
			}
		}
		switch {
		case len(comments) != 1:
			t.Errorf("package %s has %d package comments, want 1", p.name, len(comments))
		case p.main:
			if want := "Command " + path.Base(p.name) + " "; !strings.HasPrefix(comments[0], want) {
				t.Errorf("package %s: the comment does not begin with %q", p.name, want)
			}
		case !strings.HasPrefix(comments[0], "Package "+path.Base(p.name)+" "):
			t.Errorf("package %s: the comment does not begin with its name", p.name)
		case !strings.Contains(comments[0], "must not"):
			t.Errorf("package %s: the comment does not say what the package must not do", p.name)
		}
	}
}

// printers are the packages that may use the standard streams themselves: they
// hand them out, or are programs of their own. Everybody else writes to what it
// was given, which makes text of others safe to show and keeps errors.
var printers = []string{"app", "vm/accel", "vm/vmtest", "vm/vmtest/guest", "cmd/creel-guest"}

func TestStandardStreamsAreHandedOut(t *testing.T) {
	packages, fset := parseAll(t)
	for _, p := range packages {
		if slices.Contains(printers, p.name) || strings.HasPrefix(p.name, "test/") || strings.HasPrefix(p.name, "scripts/") {
			continue
		}
		for _, syntax := range p.files {
			ast.Inspect(syntax, func(n ast.Node) bool {
				use, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				of, ok := use.X.(*ast.Ident)
				name := use.Sel.Name
				if ok && (of.Name == "os" && (name == "Stdout" || name == "Stderr") || of.Name == "fmt" && strings.HasPrefix(name, "Print")) {
					t.Errorf("%s: %s.%s: write to the streams of the command instead", fset.Position(use.Pos()), of.Name, name)
				}
				return true
			})
		}
	}
}

// TestSizes prints the tail: what somebody should look at with a seam in mind.
// It fails on nothing.
func TestSizes(t *testing.T) {
	packages, fset := parseAll(t)
	for _, p := range packages {
		total := 0
		for file, syntax := range p.files {
			lines := fset.File(syntax.Pos()).LineCount() - 1
			total += lines
			if lines > largeFile {
				t.Logf("%s has %d lines", file, lines)
			}
			for _, d := range syntax.Decls {
				if f, ok := d.(*ast.FuncDecl); ok {
					printFunction(t, fset, f)
				}
			}
		}
		if total > largePackage {
			t.Logf("package %s has %d lines", p.name, total)
		}
	}
}

func printFunction(t *testing.T, fset *token.FileSet, f *ast.FuncDecl) {
	t.Helper()
	begin := fset.Position(f.Pos())
	if lines := fset.Position(f.End()).Line - begin.Line + 1; lines > largeFunction {
		t.Logf("%s: %s has %d lines", begin, f.Name.Name, lines)
	}
	if n := f.Type.Params.NumFields(); n > manyArguments {
		t.Logf("%s: %s has %d parameters", begin, f.Name.Name, n)
	}
}

// parseAll parses every package of the module, whatever its build constraints.
func parseAll(t *testing.T) ([]goPackage, *token.FileSet) {
	t.Helper()
	byName := map[string]*goPackage{}
	fset := token.NewFileSet()
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); file != "." && (strings.HasPrefix(base, ".") || base == "testdata" || file == "build") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		syntax, err := parser.ParseFile(fset, filepath.Join("..", file), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Dir(file), "internal/")
		if byName[name] == nil {
			byName[name] = &goPackage{name: name, main: syntax.Name.Name == "main", files: map[string]*ast.File{}}
		}
		byName[name].files[file] = syntax
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(byName) < 10 {
		t.Fatalf("found %d packages: is the test not in internal/ any more?", len(byName))
	}
	var all []goPackage
	for _, p := range byName {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b goPackage) int { return strings.Compare(a.name, b.name) })
	return all, fset
}
