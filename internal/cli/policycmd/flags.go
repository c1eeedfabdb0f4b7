package policycmd

import (
	"io"
	"path/filepath"

	"creel/internal/policy"
	"creel/internal/policy/syntax"

	"github.com/spf13/pflag"
)

// Flags are those of `creel run` that state a policy.
type Flags struct {
	file, net      string
	allow, presets []string
}

// Register makes them known to a command.
func (f *Flags) Register(fs *pflag.FlagSet) {
	fs.StringVar(&f.file, "policy", "", "what the task may reach, from a `file`; nothing where no flag says more")
	fs.StringArrayVar(&f.allow, "allow", nil, "let the task reach `HOST[:PORT]`, by TLS on 443 or as said by the port")
	fs.StringArrayVar(&f.presets, "preset", nil, "let it reach what the tool `name` needs, such as npm, pip, go, apt, git or models")
	fs.StringVar(&f.net, "net", "", "only `none`: it reaches nothing, which is so anyway where no flag allows something")
	fs.StringVar(&f.net, "network", "", "as Docker has it: only `none`")
	fs.MarkHidden("network") // it errs only where there is no such flag
}

// Text is the policy that the flags state, as a Spec has it: "" where nothing
// is allowed. Files that it refers to have been read. Warnings go to w.
func (f *Flags) Text(w io.Writer) (string, error) {
	var base *policy.Policy
	var err error
	dir := "."
	if f.file != "" {
		dir = filepath.Dir(f.file)
		if base, _, err = parse(f.file); err != nil {
			return "", err
		}
	}
	p, warnings, err := syntax.FromFlags(base, syntax.Flags{Allow: f.allow, Presets: f.presets, Net: f.net}, policyInputs(dir))
	if err != nil {
		return "", err
	}
	warn(w, warnings)
	if len(p.Rules) == 0 {
		return "", nil
	}
	return string(syntax.Text(p)), nil
}
