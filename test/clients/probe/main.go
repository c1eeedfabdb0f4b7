// Command probe is what a hostile root of a sandbox would run: each case tries
// one way out, and prints one line of JSON that says whether anything came
// back. It judges nothing: what may come back is for who reads the line.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// result is the line that a case prints.
type result struct {
	Case    string `json:"case"`
	Sent    bool   `json:"sent"`    // something left this machine, or the case has proven nothing
	Reached bool   `json:"reached"` // something came back, or was granted
	Detail  string `json:"detail"`
}

// prober is what every case needs to know.
type prober struct {
	wait    time.Duration // for each answer
	card    string
	gateway netip.Addr
	dns     netip.AddrPort
}

// try is one case. An error is a misuse of it; all else is in the result.
type try struct {
	name, usage string
	least       int // number of arguments
	run         func(ctx context.Context, p *prober, args []string) (result, error)
}

func tries() []try {
	return slices.Concat(rawTries(), neighbourTries(), dnsTries(), streamTries(), floodTries(), []try{
		{"vports", "speak garbage to every virtio port; NAME leaves only that one", 0, vports},
		{"stolen-port", "PID: the same on the ports that a process holds", 1, stolenPort},
	})
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("probe", flag.ContinueOnError)
	wait := flags.Duration("wait", 2*time.Second, "how long to wait for each answer")
	card := flags.String("card", "eth0", "the network card")
	gateway := flags.String("gateway", "192.168.127.1", "`address` of the gateway")
	atOnce := flags.Int("rows", 0, "run rows of NUMBER, tab and command from standard input, so `many` at once")
	dns := flags.String("dns", "", "`address:port` of the resolver, if it is not the gateway's")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: probe [flags] CASE [ARGUMENT...]")
		flags.PrintDefaults()
		for _, t := range tries() {
			fmt.Fprintf(flags.Output(), "  %-16s %s\n", t.name, t.usage)
		}
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *atOnce > 0 {
		return rows(ctx, os.Stdin, out, *atOnce)
	}
	p := &prober{wait: *wait, card: *card}
	var err error
	if p.gateway, err = netip.ParseAddr(*gateway); err != nil {
		return err
	}
	p.dns = netip.AddrPortFrom(p.gateway, 53)
	if *dns != "" {
		if p.dns, err = netip.ParseAddrPort(*dns); err != nil {
			return err
		}
	}
	name := flags.Arg(0)
	i := slices.IndexFunc(tries(), func(t try) bool { return t.name == name })
	if i < 0 {
		return fmt.Errorf("there is no case %q; -help lists them", name)
	}
	t := tries()[i]
	if flags.NArg()-1 < t.least {
		return fmt.Errorf("%s wants %d arguments: %s", name, t.least, t.usage)
	}
	r, err := t.run(ctx, p, flags.Args()[1:])
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.Case = name
	return json.NewEncoder(out).Encode(r)
}

// cause is the shortest true text of an error.
func cause(err error) string {
	var no syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EINPROGRESS):
		return "no answer"
	case errors.As(err, &no):
		return no.Error()
	case errors.Is(err, io.EOF):
		return "end of file"
	}
	return err.Error()
}

// tally counts texts and prints them, most first.
type tally map[string]int

func (t tally) String() string {
	var names []string
	for name := range t {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if t[a] != t[b] {
			return t[b] - t[a]
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%d × %s", t[name], name)
	}
	return strings.Join(names, ", ")
}
