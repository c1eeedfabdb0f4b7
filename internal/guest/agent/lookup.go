package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"creel/internal/guest/api"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	maxAccounts = 4 << 20 // bytes read of /etc/passwd or /etc/group
)

// account is who a process runs as.
type account struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// account finds NAME|UID[:GROUP|GID] in the image's files, as Docker does: a
// number needs no entry, and a group that is named replaces the user's own.
func (a *Agent) account(user string) (account, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	acc := account{home: "/"}
	uid, numeric := number(name)
	login, found := "", false
	err := a.eachRecord("/etc/passwd", 6, func(f []string) bool {
		id, ok := number(f[2])
		if f[0] != name && !(numeric && ok && id == uid) {
			return true
		}
		gid, okGID := number(f[3])
		if !ok || !okGID {
			return true
		}
		login, acc.uid, acc.gid, found = f[0], id, gid, true
		if f[5] != "" {
			acc.home = f[5]
		}
		return false
	})
	if err != nil {
		return acc, err
	}
	if !found {
		if !numeric {
			return acc, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("unable to find user %s: no matching entries in passwd file", name)}
		}
		acc.uid = uid
	}
	if hasGroup && group != "" {
		err := a.group(&acc, group)
		return acc, err
	}
	err = a.eachRecord("/etc/group", 4, func(f []string) bool {
		gid, ok := number(f[2])
		if ok && login != "" {
			for member := range strings.SplitSeq(f[3], ",") {
				if member == login {
					acc.groups = append(acc.groups, gid)
				}
			}
		}
		return true
	})
	return acc, err
}

func (a *Agent) group(acc *account, group string) error {
	gid, numeric := number(group)
	found := false
	err := a.eachRecord("/etc/group", 3, func(f []string) bool {
		id, ok := number(f[2])
		if found = ok && (f[0] == group || numeric && id == gid); found {
			acc.gid = id
		}
		return !found
	})
	if err != nil || found {
		return err
	}
	if !numeric {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("unable to find group %s: no matching entries in group file", group)}
	}
	acc.gid = gid
	return nil
}

// eachRecord calls visit for each line with at least the given number of
// fields, until it returns false. A file that is not there has no lines.
func (a *Agent) eachRecord(name string, fields int, visit func([]string) bool) error {
	f, err := openRegular(a.path(name))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxAccounts))
	lines.Buffer(nil, maxAccounts)
	for lines.Scan() {
		record := strings.Split(lines.Text(), ":")
		if len(record) >= fields && !visit(record) {
			return nil
		}
	}
	return lines.Err()
}

// openRegular opens a file that task code may have replaced by a FIFO or a
// device, which would block the agent.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open %s: not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

// executable finds the file of a command: names with a slash as they are,
// others along the process's own PATH.
//
// Most directories do not have it: no error is made of that, which would cost
// more than the look, being the first error of many a clone.
func (a *Agent) executable(name, dir, searched string) (string, error) {
	if name == "" {
		return "", notFound(name)
	}
	if strings.Contains(name, "/") {
		full := name
		if !path.IsAbs(full) {
			full = path.Join(dir, full)
		}
		if errno := a.refuses(full); errno != 0 {
			return "", execError(name, errno)
		}
		return full, nil
	}
	denied := syscall.Errno(0)
	for d := range strings.SplitSeq(searched, ":") {
		if !path.IsAbs(d) {
			d = path.Join(dir, d) // "" is the working directory
		}
		full := path.Join(d, name)
		errno := a.refuses(full)
		if errno == 0 {
			return full, nil
		}
		if codeOf(errno) == api.CodeNotExecutable {
			denied = errno
		}
	}
	if denied != 0 {
		return "", execError(name, denied)
	}
	return "", notFound(name)
}

func notFound(name string) error {
	return &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("exec: %q: executable file not found in $PATH", name)}
}

// refuses says why a file cannot be executed, as far as a look at it tells.
func (a *Agent) refuses(full string) syscall.Errno {
	var stat syscall.Stat_t
	err := syscall.EINTR
	for err == syscall.EINTR {
		err, _ = syscall.Stat(a.path(full), &stat).(syscall.Errno)
	}
	switch {
	case err != 0:
		return err
	case stat.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		return syscall.EISDIR
	case stat.Mode&0o111 == 0:
		return syscall.EACCES
	}
	return 0
}

// execError classes an error of exec as Docker does: what is not there, or
// whose interpreter is not there, is 127, all else 126.
func execError(name string, err error) *api.Error {
	errno := syscall.EIO
	errors.As(err, &errno)
	return &api.Error{Code: codeOf(errno), Message: fmt.Sprintf("exec: %q: %v", name, errno)}
}

func codeOf(errno syscall.Errno) api.Code {
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR:
		return api.CodeNotFound
	case syscall.EACCES, syscall.EPERM, syscall.ENOEXEC, syscall.EISDIR, syscall.ETXTBSY, syscall.ELOOP,
		syscall.ELIBBAD, syscall.EINVAL, syscall.ENAMETOOLONG, syscall.E2BIG:
		return api.CodeNotExecutable
	case syscall.ENOSPC:
		return api.CodeNoSpace
	}
	return api.CodeInternal
}
