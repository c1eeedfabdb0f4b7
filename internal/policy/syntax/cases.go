package syntax

import (
	"strings"

	"creel/internal/policy"

	"go.yaml.in/yaml/v3"
)

func (r *reader) cases(n *yaml.Node) (cases []policy.Case) {
	for _, item := range r.sequence(n, "tests", MaxRules) {
		c := policy.Case{Line: item.Line}
		verbs := 0
		read := func(allow bool) func(*yaml.Node) {
			return func(n *yaml.Node) {
				verbs++
				c.Allow = allow
				fields := strings.Fields(r.text(n, "a test"))
				if len(fields) == 2 {
					c.Method, fields = fields[0], fields[1:]
				}
				if len(fields) == 1 {
					c.URL = fields[0]
				}
				if _, err := new(policy.Policy).Explain(c.Method, c.URL); err != nil {
					r.fault(n.Line, "write `allow: METHOD URL` or `deny: METHOD URL`", "a test: %v", err)
				}
			}
		}
		r.mapping(item, "a test", map[string]func(*yaml.Node){
			"allow": read(true), "deny": read(false),
			"rule": func(n *yaml.Node) { c.Rule = r.text(n, "rule") },
		})
		if verbs != 1 {
			r.fault(item.Line, "write `allow: METHOD URL` or `deny: METHOD URL`", "a test has one of allow and deny")
		}
		cases = append(cases, c)
	}
	return cases
}
