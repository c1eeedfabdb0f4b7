package archive

import (
	"path"
	"strings"
)

// trusted is what programs of this machine run, or believe, only because of its
// name. A merge neither makes nor replaces it unless it is told to. Each pattern
// is of one path or of all below one, at any depth, in any case of letters.
//
// The table has what a copy of a project or of a home directory has often. It
// cannot have all: a build runs what its Makefile says.
var trusted = []struct{ pattern, why string }{
	{".git/hooks", "git runs it"},
	{".git/config*", "it names programs that git runs"},
	{".git/commondir", "it tells git where its configuration is"},
	{".git/modules", "it has hooks and configuration of git"},
	{".git/worktrees", "it has configuration of git"},
	{".husky/*", "git runs it where husky is set up"},
	{".gitconfig", "it names programs that git runs"},
	{".config/git/*", "it names programs that git runs"},

	{".bash*", "bash runs it"},
	{".profile", "shells run it"},
	{".xprofile", "the desktop runs it"},
	{".xsession*", "the desktop runs it"},
	{".zsh*", "zsh runs it"},
	{".zprofile", "zsh runs it"},
	{".zlog*", "zsh runs it"},
	{".config/fish/*", "fish runs it"},
	{".envrc", "direnv runs it"},
	{".config/autostart/*", "the desktop runs it"},
	{".config/systemd/*", "systemd runs it"},
	{".local/bin/*", "it is found as a command"},

	{".ssh/*", "ssh lets in and connects by it"},
	{".gnupg/*", "GnuPG trusts it"},
	{".aws/*", "it names programs that the AWS tools run, and credentials"},
	{".kube/*", "it names programs that kubectl runs, and credentials"},
	{".docker/*", "it names programs that Docker runs, and credentials"},
	{".netrc", "it has credentials"},
	{".npmrc", "it tells npm where packages are from"},
	{".config/pip/*", "it tells pip where packages are from"},
	{".cargo/config*", "it names programs that cargo runs"},

	{".vscode/*", "the editor runs what it says"},
	{".idea/*", "the editor runs what it says"},
	{".vimrc", "vim runs it"},
	{".vim/*", "vim runs it"},
	{".config/nvim/*", "nvim runs it"},
	{".claude/*", "an agent here runs what it says"},
	{".codex/*", "an agent here runs what it says"},
	{".cursor/*", "an agent here runs what it says"},
	{".mcp.json", "an agent here runs what it says"},
}

// whyTrusted is why a file or link that a copy makes is trusted here, or "". The
// place is the directory that is copied to: what ends in it was there before,
// but what begins in it may end in the copy. A file or link that is in the place
// of a trusted one's directory leads to all that would be below it.
func whyTrusted(place, name string) string {
	before := strings.FieldsFunc(strings.ToLower(place), isSlash)
	all := append(before, strings.FieldsFunc(strings.ToLower(name), isSlash)...)
	for _, row := range trusted {
		parts := strings.Split(row.pattern, "/")
		for at := range all {
			n := matching(parts, all[at:])
			whole := n == len(parts) && at+n > len(before)
			if whole || n > 0 && at+n == len(all) {
				return row.why
			}
		}
	}
	return ""
}

func isSlash(r rune) bool { return r == '/' }

// matching is how many of the parts the names begin with; 0 if one of them
// differs.
func matching(parts, names []string) int {
	for i, part := range parts {
		if i == len(names) {
			return i
		}
		if ok, _ := path.Match(part, names[i]); !ok {
			return 0
		}
	}
	return len(parts)
}
