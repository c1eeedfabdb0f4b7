package cli

import (
	"fmt"
	"strconv"
	"strings"

	"creel/internal/sandbox"

	"github.com/docker/go-connections/nat"
)

// publishPorts reads Docker's form, [ip:][host:]guest[/proto], with ranges.
// Without an address a port is published on the loopback alone.
func publishPorts(specs []string) (out []sandbox.Port, err error) {
	for _, spec := range specs {
		mappings, err := nat.ParsePortSpec(spec)
		if err != nil {
			return nil, fmt.Errorf("-p %q: %w; want [ip:][host:]guest[/proto], such as 8080:80", spec, err)
		}
		for _, m := range mappings {
			p := sandbox.Port{HostIP: m.Binding.HostIP, Proto: m.Port.Proto()}
			if p.HostIP == "" {
				p.HostIP = "127.0.0.1"
			}
			// The library has checked both numbers.
			guest, gerr := strconv.ParseUint(m.Port.Port(), 10, 16)
			host, herr := uint64(0), error(nil)
			if m.Binding.HostPort != "" {
				host, herr = strconv.ParseUint(m.Binding.HostPort, 10, 16)
			}
			if gerr != nil || herr != nil || p.Proto != "tcp" && p.Proto != "udp" {
				return nil, fmt.Errorf("-p %q: want one host port for each of the sandbox's, by tcp or udp", spec)
			}
			p.GuestPort, p.HostPort = uint16(guest), uint16(host)
			out = append(out, p)
		}
	}
	return out, nil
}

// formatPorts is how `ps` shows published ports, as Docker does.
func formatPorts(ports []sandbox.Port) string {
	var out []string
	for _, p := range ports {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}
