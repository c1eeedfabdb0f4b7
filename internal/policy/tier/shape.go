package tier

import "regexp"

// shapes are the forms of credentials that their issuers publish, so that
// scanners can find them.
var shapes = []struct {
	kind    string
	pattern *regexp.Regexp
}{
	{"a private key", regexp.MustCompile(`-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----`)},
	{"an AWS access key", regexp.MustCompile(`\b(AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b`)},
	{"a GitHub token", regexp.MustCompile(`\b(gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b`)},
	{"a GitLab token", regexp.MustCompile(`\bgl(pat|ptt|dt|rt|cbt|soat|ft|imt|agent)-[A-Za-z0-9_.=-]{20,}`)},
	{"a Slack token", regexp.MustCompile(`\b(xox[abeoprs]-|xapp-|xwfp-)[A-Za-z0-9-]{10,}`)},
	{"a Slack webhook", regexp.MustCompile(`hooks\.slack\.com/(services|workflows|triggers)/[A-Za-z0-9+/]{20,}`)},
	{"an Anthropic key", regexp.MustCompile(`\bsk-ant-[a-z0-9]+-[A-Za-z0-9_-]{20,}`)},
	{"an OpenRouter key", regexp.MustCompile(`\bsk-or-v1-[0-9a-f]{64}\b`)},
	{"an OpenAI key", regexp.MustCompile(`\bsk-(proj-|svcacct-|admin-)?[A-Za-z0-9_-]{32,}`)},
	{"a Google API key", regexp.MustCompile(`\bAIza[A-Za-z0-9_-]{35}`)},
	{"a Google OAuth token", regexp.MustCompile(`\b(ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,})`)},
	{"a Stripe key", regexp.MustCompile(`\b([sr]k_(live|test|prod)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9]{24,})`)},
	{"an npm token", regexp.MustCompile(`\bnpm_[A-Za-z0-9]{36}\b`)},
	{"a PyPI token", regexp.MustCompile(`\bpypi-[A-Za-z0-9_-]{50,}`)},
	{"a Hugging Face token", regexp.MustCompile(`\bhf_[A-Za-z0-9]{30,}\b`)},
	{"a Docker token", regexp.MustCompile(`\bdckr_(pat|oat)_[A-Za-z0-9_-]{20,}`)},
	{"a Vault token", regexp.MustCompile(`\bhv[bs]\.[A-Za-z0-9_-]{20,}`)},
	{"a DigitalOcean token", regexp.MustCompile(`\bdo[opr]_v1_[0-9a-f]{64}\b`)},
	{"a SendGrid key", regexp.MustCompile(`\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}`)},
	{"a JSON Web Token", regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*`)},
	{"a URL with a password", regexp.MustCompile(`\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s:@]{6,}@`)},
}

// SecretShape says what kind of credential a value looks like, or "". It never
// gives the value back.
func SecretShape(value string) string {
	for _, s := range shapes {
		if s.pattern.MatchString(value) {
			return s.kind
		}
	}
	return ""
}

// Hide gives a text back for a record or a message, unless it looks like it
// holds a credential; then it says so instead. The whole text goes: what
// belongs to a credential often stands beside it.
func Hide(text string) string {
	if kind := SecretShape(text); kind != "" {
		return "[hidden: it looks like " + kind + "]"
	}
	return text
}

// HideAll hides each of the texts.
func HideAll(texts []string) []string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = Hide(t)
	}
	return out
}
