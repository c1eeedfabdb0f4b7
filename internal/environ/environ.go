// Package environ decides what of this process's environment the processes
// that it starts are given. The environment of whoever runs Creel is full of
// secrets that no sandbox needs; it stands in /proc for as long as a process
// lives, and some of Creel's processes live long and parse what is hostile.
//
// [Helper], [Own] and [Edge] are lists of what is let through; a process that
// is on none of them is given nothing at all, as a VMM and a holder are. The
// package must not read a setting, and must not change the environment.
package environ

import "os"

// plain is what programs find others with, and put time, text and temporary
// files where the user wants them.
var plain = []string{"PATH", "TZ", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "LC_MESSAGES"}

// proxies may hold credentials: they are for what uses the network alone.
var proxies = []string{
	"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy",
}

// Helper is for programs of the system that Creel runs.
func Helper() []string { return only(plain) }

// Fetcher is for apt, which uses the network and has settings of its own.
func Fetcher() []string { return only(plain, proxies, []string{"HOME", "APT_CONFIG"}) }

// Own is for a process of Creel's own that reads the settings, whose variables
// are given.
func Own(settings []string) []string { return only(plain, settings) }

// Edge is what the edge of a sandbox with a policy needs beside: which
// certificates to trust, and which proxy leads out.
func Edge(settings []string) []string {
	return only(plain, settings, proxies, []string{"SSL_CERT_FILE", "SSL_CERT_DIR"})
}

// only are the variables with these names that are set. It is never nil, which
// would be everything to package exec.
func only(lists ...[]string) []string {
	out := []string{}
	for _, list := range lists {
		for _, name := range list {
			if value, ok := os.LookupEnv(name); ok {
				out = append(out, name+"="+value)
			}
		}
	}
	return out
}
