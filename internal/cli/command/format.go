package command

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"
	"time"

	"github.com/docker/go-units"
)

// ShortID is the first twelve digits of a digest.
func ShortID(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(len(hex), 12)]
}

// Ago is a time as its distance from now.
func Ago(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "-"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

// PrintEach prints values as JSON lines or by a Go template.
func PrintEach[T any](w io.Writer, values []T, format string) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := template.New("format").Funcs(template.FuncMap{
		"json": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
		"join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper,
	}).Parse(format)
	if err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	for _, v := range values {
		if err := t.Execute(w, v); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	return nil
}

// PrintJSON prints a value as JSON for people to read.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
