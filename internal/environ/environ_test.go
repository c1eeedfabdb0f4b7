package environ

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOnlyWhatIsListedIsLetThrough(t *testing.T) {
	for _, name := range []string{"AWS_SECRET_ACCESS_KEY", "CREEL_TOKEN", "GODEBUG", "LD_PRELOAD", "QEMU_AUDIO_DRV", "CREEL_TIER", "HTTPS_PROXY", "SSL_CERT_FILE", "PATH", "HOME", "APT_CONFIG", "TZ"} {
		t.Setenv(name, "set")
	}
	settings := []string{"CREEL_TIER", "HOME", "CREEL_NOT_SET_ANYWHERE"}
	for name, tc := range map[string]struct {
		got  []string
		want []string // of those above
	}{
		"helper":  {Helper(), []string{"PATH", "TZ"}},
		"fetcher": {Fetcher(), []string{"APT_CONFIG", "HOME", "HTTPS_PROXY", "PATH", "TZ"}},
		"own":     {Own(settings), []string{"CREEL_TIER", "HOME", "PATH", "TZ"}},
		"edge":    {Edge(settings), []string{"CREEL_TIER", "HOME", "HTTPS_PROXY", "PATH", "SSL_CERT_FILE", "TZ"}},
	} {
		var got []string
		for _, e := range tc.got {
			if name, ok := strings.CutSuffix(e, "=set"); ok {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	if only(nil) == nil {
		t.Error("nothing is everything to package exec")
	}
}

// usersOwn starts what the user says, in the user's environment.
const usersOwn = "../secret/store/source.go"

// Every process that Creel starts is given an environment: without one it has
// all of this process's.
func TestEveryProcessIsGivenAnEnvironment(t *testing.T) {
	started := 0
	for _, root := range []string{"..", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || path == usersOwn {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				starts, gives := processes(decl)
				started += starts
				if starts > gives {
					t.Errorf("%s: a function starts %d processes and gives %d of them an environment; package environ has what may be in it", path, starts, gives)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if started < 8 {
		t.Errorf("only %d places that start a process were found", started)
	}
}

// processes counts the processes that a function makes, and the environments
// that it gives.
func processes(decl ast.Decl) (starts, gives int) {
	ast.Inspect(decl, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			of, _ := n.X.(*ast.Ident)
			name := n.Sel.Name
			if of != nil && (of.Name == "exec" && strings.HasPrefix(name, "Command") || of.Name == "os" && name == "StartProcess" ||
				of.Name == "syscall" && (name == "ForkExec" || name == "StartProcess")) {
				starts++
			}
		case *ast.AssignStmt:
			for _, to := range n.Lhs {
				if s, ok := to.(*ast.SelectorExpr); ok && s.Sel.Name == "Env" {
					gives++
				}
			}
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Env" {
				gives++
			}
		}
		return true
	})
	return starts, gives
}
