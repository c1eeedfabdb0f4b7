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
	{".git/info/attributes", "it names filters that git runs"},
	{".git/objects/info/alternates", "it tells git where else objects are"},
	{".git/rebase-merge/git-rebase-todo", "git runs what it says"},
	{".pre-commit-config.yaml", "git runs what it says, where pre-commit is set up"},
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
	{".oh-my-zsh/*", "zsh runs it"},
	{".kshrc", "ksh runs it"},
	{".cshrc", "csh runs it"},
	{".login", "csh runs it"},
	{".inputrc", "shells read what keys do from it"},
	{".pam_environment", "it sets variables for each login"},
	{".config/environment.d/*", "it sets variables for each login"},
	{".xinitrc", "the desktop runs it"},
	{".config/nushell/*", "nushell runs it"},
	{".config/direnv/*", "direnv runs it"},
	{".nvm/*", "shells run it"},
	{".cargo/env", "shells run it"},
	{".cargo/bin/*", "it is found as a command"},
	{".mise.toml", "mise runs what it says"},
	{".tmux.conf", "tmux runs what it says"},
	{".gdbinit", "gdb runs it"},
	{".config/fish/*", "fish runs it"},
	{".envrc", "direnv runs it"},
	{".config/autostart/*", "the desktop runs it"},
	{".config/systemd/*", "systemd runs it"},
	{".local/bin/*", "it is found as a command"},
	{".local/lib/*", "interpreters load it"},
	{".local/share/applications/*", "the desktop runs what it says"},
	{".config/sway/*", "the desktop runs what it says"},
	{".config/i3/*", "the desktop runs what it says"},
	{".config/hypr/*", "the desktop runs what it says"},

	{".ssh/*", "ssh lets in and connects by it"},
	{".gnupg/*", "GnuPG trusts it"},
	{".aws/*", "it names programs that the AWS tools run, and credentials"},
	{".kube/*", "it names programs that kubectl runs, and credentials"},
	{".docker/*", "it names programs that Docker runs, and credentials"},
	{".netrc", "it has credentials"},
	{".pgpass", "it has credentials"},
	{".pypirc", "it has credentials"},
	{".config/gh/*", "it has credentials"},
	{".terraformrc", "it names programs that terraform runs, and credentials"},
	{".m2/settings.xml", "it tells Maven where packages are from"},
	{".gradle/init*", "Gradle runs it"},
	{".bundle/config", "it tells Bundler where packages are from"},
	{".yarnrc*", "it names programs that yarn runs"},
	{".npmrc", "it tells npm where packages are from"},
	{".config/pip/*", "it tells pip where packages are from"},
	{".cargo/config*", "it names programs that cargo runs"},

	{".vscode/*", "the editor runs what it says"},
	{".idea/*", "the editor runs what it says"},
	{".config/code/*", "the editor runs what it says"},
	{".vscode-server/*", "the editor runs it"},
	{".zed/*", "the editor runs what it says"},
	{".config/zed/*", "the editor runs what it says"},
	{".devcontainer/*", "the editor runs what it says"},
	{".emacs", "emacs runs it"},
	{".emacs.d/*", "emacs runs it"},
	{".vimrc", "vim runs it"},
	{".vim/*", "vim runs it"},
	{".config/nvim/*", "nvim runs it"},
	{".claude/*", "an agent here runs what it says"},
	{".claude.json", "an agent here runs what it says"},
	{".gemini/*", "an agent here runs what it says"},
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
