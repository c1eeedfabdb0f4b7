package syntax

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"creel/internal/policy"

	"go.yaml.in/yaml/v3"
)

// The file form, in the order in which keys are printed.
type fileForm struct {
	Version int              `yaml:"version"`
	OnAlert string           `yaml:"on_alert,omitempty"`
	Budget  map[string]int64 `yaml:"budget,omitempty"`
	Rules   []ruleForm       `yaml:"rules,omitempty"`
	Tests   []caseForm       `yaml:"tests,omitempty"`
}

type ruleForm struct {
	Allow        string           `yaml:"allow,omitempty"`
	Deny         string           `yaml:"deny,omitempty"`
	Name         string           `yaml:"name,omitempty"`
	Ports        []string         `yaml:"ports,omitempty,flow"`
	Protocol     policy.Protocol  `yaml:"protocol,omitempty"`
	Methods      []string         `yaml:"methods,omitempty,flow"`
	Paths        []string         `yaml:"paths,omitempty,flow"`
	Secret       string           `yaml:"secret,omitempty"`
	Upstream     *upstreamForm    `yaml:"upstream,omitempty"`
	AllowPrivate bool             `yaml:"allow_private,omitempty"`
	ECH          string           `yaml:"ech,omitempty"`
	Unreadable   string           `yaml:"unreadable,omitempty"`
	Budget       map[string]int64 `yaml:"budget,omitempty"`
}

type upstreamForm struct {
	Address string `yaml:"address"`
	CA      string `yaml:"ca,omitempty"`
}

type caseForm struct {
	Allow string `yaml:"allow,omitempty"`
	Deny  string `yaml:"deny,omitempty"`
	Rule  string `yaml:"rule,omitempty"`
}

// Text is the whole policy as a file that needs no inputs: presets are rules,
// and every rule has its name. Parse gives the same policy back, but for line
// numbers; a digest of the text is a digest of the policy.
func Text(p *policy.Policy) []byte {
	form := fileForm{Version: 1}
	if p != nil {
		form.Budget = Limits(p.Budget)
		if p.EndOnAlert {
			form.OnAlert = "end"
		}
		for i := range p.Rules {
			form.Rules = append(form.Rules, ruleFormOf(&p.Rules[i]))
		}
		for _, c := range p.Cases {
			f := caseForm{Rule: c.Rule}
			if c.Allow {
				f.Allow = c.String()
			} else {
				f.Deny = c.String()
			}
			form.Tests = append(form.Tests, f)
		}
	}
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(form); err != nil {
		panic(fmt.Sprintf("policy: print: %v", err)) // strings and numbers always encode
	}
	return buf.Bytes()
}

func ruleFormOf(r *policy.Rule) ruleForm {
	f := ruleForm{
		Name: r.Name, Ports: formatPorts(r.Ports), Protocol: r.Protocol, Methods: r.Methods, Paths: r.Paths,
		Secret: r.Secret, AllowPrivate: r.AllowPrivate, Budget: Limits(r.Budget),
	}
	if r.Deny {
		f.Deny = r.Destination()
	} else {
		f.Allow = r.Destination()
	}
	if r.ECH {
		f.ECH = "allow"
	}
	if r.Unreadable {
		f.Unreadable = "allow"
	}
	if r.Upstream.Address != "" {
		f.Upstream = &upstreamForm{r.Upstream.Address, r.Upstream.CA}
	}
	return f
}

// Limits are the limits of a budget that are set, by their keys in the text.
func Limits(b policy.Budget) map[string]int64 {
	m := map[string]int64{}
	for _, l := range limits(&b) {
		if *l.value > 0 {
			m[l.key] = *l.value
		}
	}
	return m
}

// Digest is that of a canonical text, sha256:HEX.
func Digest(text string) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
}

// Canonical is the text of a policy that a Spec states; "" states the one that
// allows nothing, which has a text as well.
func Canonical(text string) string {
	if text == "" {
		return string(Text(nil))
	}
	return text
}
