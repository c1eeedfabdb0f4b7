package cli_test

import (
	"io"
	"strings"
	"testing"

	"creel/internal/cli"
)

func TestLogFlagsAreEveryCommands(t *testing.T) {
	for _, test := range []struct {
		args string
		want cli.Logging
		err  string
	}{
		{args: "config path"},
		{args: "--log-level debug config path", want: cli.Logging{Level: "debug"}},
		{args: "config path --log-level error --log-format json", want: cli.Logging{Level: "error", Format: "json"}},
		{args: "config --log-format text path", want: cli.Logging{Format: "text"}},
		{args: "config path --log-level loud", err: "want one of debug, info, warn, error"},
		{args: "config path --log-format xml", err: "want one of text, json"},
	} {
		var got cli.Logging
		c := cli.Root(cli.Env{Logging: &got, Streams: cli.Streams{Out: io.Discard, Err: io.Discard}})
		c.SetArgs(strings.Fields(test.args))
		err := c.Execute()
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("creel %s: %v, want %q", test.args, err, test.err)
			}
			continue
		}
		if err != nil || got != test.want {
			t.Errorf("creel %s: %+v, %v; want %+v", test.args, got, err, test.want)
		}
	}
}
