package web

import (
	"encoding/json"
	"net/http"
)

// Denial is why a request is not let through, as the task is told.
type Denial struct {
	Status int    `json:"-"` // 0: 403
	Error  string `json:"error"`
	By     string `json:"by"`
	Host   string `json:"host,omitempty"`
	Port   uint16 `json:"port,omitempty"`
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	Rule   string `json:"rule,omitempty"` // that decided; "" where none did
	Reason string `json:"reason"`
	Hint   string `json:"hint,omitempty"` // what would allow it
}

// Headers of an answer that is Creel's own.
const (
	decisionHeader = "Creel-Decision"
	ruleHeader     = "Creel-Rule"
)

func (d *Denial) answer(w http.ResponseWriter, r *http.Request, site *Site) {
	d.By, d.Host, d.Port = "creel", site.Host, site.Port
	if d.Method == "" {
		d.Method, d.Path = r.Method, r.URL.EscapedPath()
	}
	if d.Error == "" {
		d.Error = "denied"
	}
	if d.Status == 0 {
		d.Status = http.StatusForbidden
	}
	body, err := json.Marshal(d)
	if err != nil { // strings and numbers encode
		panic(err)
	}
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if d.Error == "denied" {
		h.Set(decisionHeader, "deny")
		h.Set(ruleHeader, asHeader(d.Rule))
	}
	w.WriteHeader(d.Status)
	w.Write(append(body, '\n'))
}

// asHeader keeps a rule's name to what a header can hold.
func asHeader(name string) string {
	out := []byte(name)
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '?'
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return string(out)
}

func (s *Site) refused(d *Denial) {
	if s.Refused != nil {
		s.Refused(d.Reason, d.Hint)
	}
}
