// Package standby keeps VMs that wait for a task: clones of a template that
// were restored, and given their disk, before anybody wanted one. [Pool] is the
// launcher's side: it takes one that fits, starts the process that makes the
// next, and ends those that are not wanted any more. [Place] is the waiting
// process's side.
//
// A VM waits for one task at most. What waits has nothing of anybody: no name,
// no policy, no secret and no record; its process becomes the keeper of the
// sandbox whose launcher takes it, and is handed what any keeper begins with.
// The package must not start a machine and must not know what a task is.
package standby

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"creel/internal/durable"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/procs"
	"creel/internal/sandbox"
	"creel/internal/scratch"
)

const keyName = "standby.json" // in the directory of each, which becomes the sandbox's

// Key says what a waiting VM is good for.
type Key struct {
	Template    string              `json:"template"` // digest
	Disk        scratch.Kind        `json:"disk"`
	DiskBytes   int64               `json:"diskBytes"`
	Confinement sandbox.Confinement `json:"confinement"`
	Program     string              `json:"program"` // this creel, as [Program] tells it from others
}

// entry is what a waiting VM's directory says of it.
type entry struct {
	Key
	UID int `json:"uid"` // of keeper and VMM; 0: the user's own
}

// Pool is the directory of an installation's waiting VMs. Its methods are
// called with the store's lock held, but for Fill.
type Pool struct {
	Dir     string
	Size    int      // how many wait; 0: none
	Command []string // becomes a waiting process, with a Key as JSON behind it
	Environ []string // of that process
}

// Taken is a waiting VM that belongs to the caller. Its methods may be called
// after Close and by several goroutines.
type Taken struct {
	dir     string
	UID     int
	PID     int // of the process, while it lives
	conn    *net.UnixConn
	process *procs.Handle
}

// Program tells the running program from any other that lay at its path.
func Program() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		return "", fmt.Errorf("look at this program: %w", err)
	}
	return fmt.Sprintf("%d:%d:%d:%d.%d", st.Dev, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec), nil
}

// Take is a VM that waits for such a task; nil: there is none.
func (p *Pool) Take(key Key) (*Taken, error) {
	all, err := p.entries()
	if err != nil {
		return nil, err
	}
	for dir, e := range all {
		if e.Key != key {
			continue
		}
		if t, err := connect(dir); err == nil {
			t.UID = e.UID
			return t, nil
		}
	}
	return nil, nil
}

// connect fails for a VM that is not ready yet or any more.
func connect(dir string) (*Taken, error) {
	conn, err := socket.Connect(dir)
	if err != nil {
		return nil, err
	}
	cred, err := procs.Peer(conn)
	var process *procs.Handle
	if err == nil {
		process, err = procs.Open(int(cred.Pid))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to a waiting VM: %w", err)
	}
	return &Taken{dir: dir, PID: process.PID, conn: conn, process: process}, nil
}

// Move makes the VM's directory that of a sandbox.
func (t *Taken) Move(dir string) error {
	if err := errors.Join(os.Remove(filepath.Join(t.dir, keyName)), os.Rename(t.dir, dir)); err != nil {
		return fmt.Errorf("move a waiting VM: %w", err)
	}
	t.dir = dir
	return nil
}

// Hand gives the process what a keeper begins with. The files stay the
// caller's.
func (t *Taken) Hand(files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	if _, _, err := t.conn.WriteMsgUnix([]byte{byte(len(fds))}, unix.UnixRights(fds...), nil); err != nil {
		return fmt.Errorf("hand over to the waiting VM: %w", err)
	}
	return nil
}

// Kill ends the process and its VM at once.
func (t *Taken) Kill() error {
	err := t.process.Signal(unix.SIGKILL)
	if errors.Is(err, os.ErrClosed) { // it had ended, or was handed nothing
		return nil
	}
	return err
}

// Wait returns when the process has ended.
func (t *Taken) Wait() error { return t.process.Wait() }

// Ended reports whether the process has ended.
func (t *Taken) Ended() bool {
	ended, _ := t.process.Ends(0) // who hands over to one of which that is not known is told
	return ended
}

// End is Kill and Wait and Close.
func (t *Taken) End() error {
	return errors.Join(t.Kill(), t.Wait(), t.Close())
}

// Close forgets the process, which ends where it was handed nothing.
func (t *Taken) Close() error { return errors.Join(t.conn.Close(), t.process.Close()) }

// Fill starts a process in which one more VM like this will wait, where there
// are not enough. It does not wait for it.
func (p *Pool) Fill(key Key) error {
	text, err := json.Marshal(key)
	if err != nil {
		return fmt.Errorf("encode what is to wait: %w", err)
	}
	cmd := exec.Command(p.Command[0], append(p.Command[1:], string(text))...)
	cmd.Dir, cmd.Env = "/", append([]string{}, p.Environ...) // nil would be this process's
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a waiting VM: %w", err)
	}
	go cmd.Wait()
	return nil
}

// Sweep removes what killed processes left, and ends the VMs that wait beyond
// keep.
func (p *Pool) Sweep(keep int) error {
	all, err := p.entries()
	if err != nil {
		return err
	}
	var errs []error
	for dir := range all {
		if alive(dir) {
			if keep--; keep < 0 {
				errs = append(errs, end(dir))
			}
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// End ends every waiting VM of a template.
func (p *Pool) End(template string) error {
	all, err := p.entries()
	var errs []error
	for dir, e := range all {
		if e.Template == template && alive(dir) {
			errs = append(errs, end(dir))
		}
	}
	return errors.Join(append(errs, err)...)
}

// alive asks the lock, which the kernel gives back on any death.
func alive(dir string) bool { return durable.Held(filepath.Join(dir, launch.LockName)) }

// end ends a waiting VM. One that is still getting ready finds its directory
// gone and ends then.
func end(dir string) error {
	t, err := connect(dir)
	if err != nil {
		return os.RemoveAll(dir)
	}
	return errors.Join(t.End(), os.RemoveAll(dir))
}

// Empty reports whether nothing waits or was left, without a lock.
func (p *Pool) Empty() bool {
	all, err := p.entries()
	return err == nil && len(all) == 0
}

// UIDs are the users that waiting VMs have.
func (p *Pool) UIDs() ([]int, error) {
	all, err := p.entries()
	var uids []int
	for _, e := range all {
		uids = append(uids, e.UID)
	}
	return uids, err
}

// entries maps the directories of the pool to what they hold.
func (p *Pool) entries() (map[string]entry, error) {
	list, err := os.ReadDir(p.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list waiting VMs: %w", err)
	}
	all := map[string]entry{}
	for _, l := range list {
		dir := filepath.Join(p.Dir, l.Name())
		var e entry
		if text, err := os.ReadFile(filepath.Join(dir, keyName)); err == nil {
			json.Unmarshal(text, &e) // one that cannot be read fits nothing
		}
		all[dir] = e
	}
	return all, nil
}
