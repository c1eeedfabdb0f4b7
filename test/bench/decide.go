package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"creel/internal/policy"
	"creel/internal/policy/syntax"
)

// decisions are rows of the policy alone.
func decisions() (all []row) {
	for _, n := range []int{10, 1000, 10000} {
		least := 0.0
		if n == 1000 {
			least = 1
		}
		all = append(all, row{name: fmt.Sprintf("policy: decisions, %d rules", n), unit: "million/s", minA: least,
			setup: func(context.Context) (a, b side, err error) {
				p, _, err := syntax.Parse([]byte(policyText(n)), syntax.Inputs{})
				if err != nil {
					return a, b, err
				}
				requests := requestsOf(n)
				return side{"one core, of every kind", func(context.Context) (float64, error) { return decide(p, requests) }}, b, nil
			}})
	}
	return all
}

// policyText has rules of every kind that a host can be matched by.
func policyText(n int) string {
	var text strings.Builder
	text.WriteString("version: 1\nrules:\n")
	for i := range n {
		switch i % 10 {
		case 0:
			fmt.Fprintf(&text, "  - {deny: \"**.d%d.example.com\"}\n", i)
		case 1:
			fmt.Fprintf(&text, "  - {allow: \"**.w%d.example.com\"}\n", i)
		case 2:
			fmt.Fprintf(&text, "  - {allow: \"*.o%d.example.com\", ports: [443, 8443]}\n", i)
		case 3:
			fmt.Fprintf(&text, "  - {allow: 8.%d.%d.0/24, ports: 22}\n", i/256, i%256)
		default:
			fmt.Fprintf(&text, "  - {allow: h%d.example.com, ports: 443}\n", i)
		}
	}
	return text.String()
}

// requestsOf asks, all over the rules, for what they allow, deny and do not
// have.
func requestsOf(n int) (all []policy.Request) {
	for i := range 1000 {
		k := i * n / 1000 / 10 * 10
		all = append(all,
			policy.Request{Op: policy.Connect, Host: fmt.Sprintf("h%d.example.com", k+5), Port: 443},
			policy.Request{Op: policy.Connect, Host: fmt.Sprintf("a.b.w%d.example.com", k+1), Port: 443},
			policy.Request{Op: policy.Resolve, Host: fmt.Sprintf("x.d%d.example.com", k)},
			policy.Request{Op: policy.Connect, Host: fmt.Sprintf("nowhere%d.example.org", k), Port: 443},
			policy.Request{Op: policy.Connect, Addr: netip.AddrFrom4([4]byte{8, byte((k + 3) / 256), byte((k + 3) % 256), 9}), Port: 22})
	}
	return all
}

// decide is how many million decisions a second are made in a quarter of one.
func decide(p *policy.Policy, requests []policy.Request) (float64, error) {
	made, allowed := 0, 0
	began := time.Now()
	for time.Since(began) < time.Second/4 {
		for _, r := range requests {
			if p.Decide(r).Allow {
				allowed++
			}
		}
		made += len(requests)
	}
	took := time.Since(began)
	if allowed*5 != made*3 {
		return 0, errors.New("three of five requests were to be allowed")
	}
	return float64(made) / 1e6 / took.Seconds(), nil
}
