// Package names is a sandbox's own resolver. Each name that policy allows has
// an address of its own for as long as the sandbox lives, so that a connection
// of any protocol is known by name; [Names.Host] gives the name back. Nothing
// else is ever answered: no other record type carries data, a denied name does
// not exist, and of what the guest sent only the question comes back.
//
// The main type is [Names]. The package must not resolve or dial, and has no
// way to: an answer is made of the question and of a number.
package names
