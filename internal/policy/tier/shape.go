package tier

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// shape is one form of credential that its issuer publishes, so that scanners
// can find it. Every process of Creel comes by here when it begins, so a
// pattern is compiled when a text has one of the marks that every match has.
type shape struct {
	kind    string
	marks   []string
	pattern func() *regexp.Regexp
}

func newShape(kind, pattern string, marks ...string) shape {
	return shape{kind, marks, sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })}
}

func (s shape) matches(text string) bool {
	return slices.ContainsFunc(s.marks, func(mark string) bool { return strings.Contains(text, mark) }) && s.pattern().MatchString(text)
}

var shapes = []shape{
	newShape("a private key", `-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----`, "PRIVATE KEY"),
	newShape("an AWS access key", `\b(AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b`, "AKIA", "ASIA", "ABIA", "ACCA"),
	newShape("a GitHub token", `\b(gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b`, "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
	newShape("a GitLab token", `\bgl(pat|ptt|dt|rt|cbt|soat|ft|imt|agent)-[A-Za-z0-9_.=-]{20,}`, "glpat-", "glptt-", "gldt-", "glrt-", "glcbt-", "glsoat-", "glft-", "glimt-", "glagent-"),
	newShape("a Slack token", `\b(xox[abeoprs]-|xapp-|xwfp-)[A-Za-z0-9-]{10,}`, "xox", "xapp-", "xwfp-"),
	newShape("a Slack webhook", `hooks\.slack\.com/(services|workflows|triggers)/[A-Za-z0-9+/]{20,}`, "hooks.slack.com/"),
	newShape("an Anthropic key", `\bsk-ant-[a-z0-9]+-[A-Za-z0-9_-]{20,}`, "sk-ant-"),
	newShape("an OpenRouter key", `\bsk-or-v1-[0-9a-f]{64}\b`, "sk-or-v1-"),
	newShape("an OpenAI key", `\bsk-(proj-|svcacct-|admin-)?[A-Za-z0-9_-]{32,}`, "sk-"),
	newShape("a Google API key", `\bAIza[A-Za-z0-9_-]{35}`, "AIza"),
	newShape("a Google OAuth token", `\b(ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,})`, "ya29.", "GOCSPX-"),
	newShape("a Stripe key", `\b([sr]k_(live|test|prod)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9]{24,})`, "k_live_", "k_test_", "k_prod_", "whsec_"),
	newShape("an npm token", `\bnpm_[A-Za-z0-9]{36}\b`, "npm_"),
	newShape("a PyPI token", `\bpypi-[A-Za-z0-9_-]{50,}`, "pypi-"),
	newShape("a Hugging Face token", `\bhf_[A-Za-z0-9]{30,}\b`, "hf_"),
	newShape("a Docker token", `\bdckr_(pat|oat)_[A-Za-z0-9_-]{20,}`, "dckr_"),
	newShape("a Vault token", `\bhv[bs]\.[A-Za-z0-9_-]{20,}`, "hvb.", "hvs."),
	newShape("a DigitalOcean token", `\bdo[opr]_v1_[0-9a-f]{64}\b`, "doo_v1_", "dop_v1_", "dor_v1_"),
	newShape("a SendGrid key", `\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}`, "SG."),
	newShape("a JSON Web Token", `\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*`, "eyJ"),
	newShape("a URL with a password", `\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s:@]{6,}@`, "://"),
}

// SecretShape says what kind of credential a value looks like, or "". It never
// gives the value back.
func SecretShape(value string) string {
	for _, s := range shapes {
		if s.matches(value) {
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
