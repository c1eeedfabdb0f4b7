package syntax

import "creel/internal/policy"

// Schema is the JSON Schema of a policy file, for editors. What it cannot say
// (shadows, contradictions) only Parse finds.
func Schema() map[string]any {
	words := func(desc string, item map[string]any) map[string]any {
		return map[string]any{"description": desc, "oneOf": []any{item, map[string]any{"type": "array", "items": item, "minItems": 1, "uniqueItems": true}}}
	}
	text := func(desc string) map[string]any {
		return map[string]any{"type": "string", "description": desc, "minLength": 1}
	}
	object := func(props map[string]any, required ...string) map[string]any {
		o := map[string]any{"type": "object", "additionalProperties": false, "properties": props}
		if len(required) > 0 {
			o["required"] = required
		}
		return o
	}
	port := map[string]any{"oneOf": []any{
		map[string]any{"type": "integer", "minimum": 1, "maximum": 65535},
		map[string]any{"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"},
	}}
	budget := map[string]any{}
	for _, l := range limits(new(policy.Budget)) {
		number := map[string]any{"type": "integer", "minimum": 1}
		if l.bytes {
			number = map[string]any{"oneOf": []any{number, map[string]any{"type": "string", "pattern": "^[0-9]+ *([KMGT]iB)?$"}}}
		}
		budget[l.key] = number
	}
	rule := object(map[string]any{
		"allow":         text("destination: a name, *.NAME for one label, **.NAME for any depth, ** for all, an address or a CIDR"),
		"deny":          text("destination, as for allow; a deny beats every allow"),
		"name":          text("how records name the rule; its line where left out"),
		"ports":         words("ports and ranges; 443 for tls and 80 for http where left out, every port for a deny", port),
		"protocol":      map[string]any{"enum": []policy.Protocol{policy.TLS, policy.HTTP, policy.TCP, policy.UDP}, "description": "tls on 443, http on 80, tcp elsewhere where left out"},
		"methods":       words("HTTP methods", map[string]any{"type": "string", "pattern": policy.MethodPattern}),
		"paths":         words("path patterns: * within a segment, ** for any number of segments", map[string]any{"type": "string", "pattern": "^/"}),
		"secret":        map[string]any{"type": "string", "pattern": secretPattern.String(), "description": "name of the secret that is used here"},
		"upstream":      object(map[string]any{"address": text("HOST:PORT to connect to instead"), "ca": text("PEM, or a file of it")}, "address"),
		"allow_private": map[string]any{"type": "boolean", "description": "the name may be a private or loopback address"},
		"ech":           map[string]any{"const": "allow", "description": "encrypted ClientHello may pass"},
		"unreadable":    map[string]any{"const": "allow", "description": "responses may pass in encodings in which secrets cannot be searched for"},
		"budget":        object(budget),
	})
	rule["oneOf"] = []any{map[string]any{"required": []string{"allow"}}, map[string]any{"required": []string{"deny"}}}
	test := object(map[string]any{
		"allow": text("METHOD URL, or tcp://HOST:PORT, or udp://HOST:PORT, that is allowed"),
		"deny":  text("the same, that is denied"),
		"rule":  text("name of the rule that decides"),
	})
	test["oneOf"] = rule["oneOf"]
	schema := object(map[string]any{
		"version":  map[string]any{"const": 1},
		"on_alert": map[string]any{"const": "end", "description": "end the task when a stand-in or a canary is about to leave for elsewhere"},
		"presets":  words("rules that common tools need", map[string]any{"type": "string", "minLength": 1}),
		"budget":   object(budget),
		"rules":    map[string]any{"type": "array", "items": rule, "maxItems": MaxRules},
		"tests":    map[string]any{"type": "array", "items": test, "maxItems": MaxRules},
	}, "version")
	schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	schema["title"] = "Creel policy"
	return schema
}
