package standby

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/durable"
)

// waitEnv makes the test binary a waiting process: it says so, and then what it
// was handed.
const waitEnv = "CREEL_TEST_WAIT"

func TestMain(m *testing.M) {
	if text := os.Getenv(waitEnv); text != "" {
		if err := waiting(text); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// waiter is what a waiting process is told.
type waiter struct {
	Dir  string
	Size int
	Key  Key
	Idle time.Duration
}

func waiting(text string) error {
	var w waiter
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return err
	}
	store := func() (*durable.Lock, error) { return durable.OpenExisting("/dev/null") }
	place, err := (&Pool{Dir: w.Dir, Size: w.Size}).Make(w.Key, 7, store)
	if err != nil {
		return err
	}
	fmt.Println("place")
	var word string
	fmt.Scanln(&word)
	if err := place.Listen(); err != nil {
		return err
	}
	fmt.Println("waits")
	files, err := place.Await(context.Background(), w.Idle)
	if err != nil || files == nil {
		fmt.Println("nothing")
		return err
	}
	data, err := io.ReadAll(files[1])
	fmt.Printf("got %d files and %s\n", len(files), data)
	return err
}

// process is a waiting process and what it says, a line at a time.
type process struct {
	cmd *exec.Cmd
	in  io.Writer
	out io.Reader
}

func (p process) line(t *testing.T) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := p.out.Read(b); err != nil || b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

func start(t *testing.T, w waiter) process {
	t.Helper()
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), waitEnv+"="+string(text))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return process{cmd, in, out}
}

// waits is a process that can be taken.
func waits(t *testing.T, w waiter) process {
	t.Helper()
	p := start(t, w)
	if got := p.line(t); got != "place" {
		t.Fatal(got)
	}
	fmt.Fprintln(p.in, "go")
	if got := p.line(t); got != "waits" {
		t.Fatal(got)
	}
	return p
}

var (
	key   = Key{Template: "sha256:a", DiskBytes: 1}
	other = Key{Template: "sha256:b", DiskBytes: 1}
)

func TestTakeAndHand(t *testing.T) {
	dir := t.TempDir()
	pool := &Pool{Dir: filepath.Join(dir, "standby"), Size: 2}
	if taken, err := pool.Take(key); taken != nil || err != nil {
		t.Fatalf("of nothing: %v, %v", taken, err)
	}
	p := waits(t, waiter{pool.Dir, 2, key, time.Minute})
	if taken, err := pool.Take(other); taken != nil || err != nil {
		t.Fatalf("of another template: %v, %v", taken, err)
	}
	taken, err := pool.Take(key)
	if err != nil || taken == nil || taken.UID != 7 {
		t.Fatalf("%+v, %v", taken, err)
	}
	to := filepath.Join(dir, "sandbox")
	if err := taken.Move(to); err != nil || !pool.Empty() || !alive(to) {
		t.Fatalf("%v; the pool is empty: %v; its lock is held: %v", err, pool.Empty(), alive(to))
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := taken.Hand([]*os.File{os.Stdin, r}); err != nil {
		t.Fatal(err)
	}
	r.Close()
	fmt.Fprint(w, "a word")
	w.Close()
	if got := p.line(t); got != "got 2 files and a word" {
		t.Errorf("it says %q", got)
	}
	p.cmd.Wait()
	taken.Wait()
	if err := errors.Join(taken.Kill(), taken.Close(), taken.Kill()); err != nil {
		t.Error(err)
	}
}

func TestWhoWaitsForNothingGoes(t *testing.T) {
	for name, then := range map[string]func(*testing.T, *Pool, process){
		"nobody came": func(*testing.T, *Pool, process) {},
		"a taker died": func(t *testing.T, pool *Pool, _ process) {
			taken, err := pool.Take(key)
			if err != nil || taken == nil {
				t.Fatal(taken, err)
			}
			taken.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool := &Pool{Dir: t.TempDir(), Size: 1}
			idle := time.Minute
			if name == "nobody came" {
				idle = time.Millisecond
			}
			p := waits(t, waiter{pool.Dir, 1, key, idle})
			then(t, pool, p)
			if got := p.line(t); got != "nothing" {
				t.Errorf("it says %q", got)
			}
			p.cmd.Wait()
			if err := pool.Sweep(1); err != nil || !pool.Empty() {
				t.Errorf("left in the pool: %v", err)
			}
		})
	}
}

// listening is a place of this process.
func listening(t *testing.T) (*Pool, *Place) {
	t.Helper()
	pool := &Pool{Dir: t.TempDir(), Size: 1}
	place, err := pool.Make(key, 0, func() (*durable.Lock, error) { return durable.OpenExisting("/dev/null") })
	if err != nil {
		t.Fatal(err)
	}
	if err := place.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { place.Close() })
	return pool, place
}

// Whoever comes at the last moment holds the store's lock, and is served.
func TestTheLastMoment(t *testing.T) {
	pool, place := listening(t)
	taken, err := connect(place.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := taken.Hand([]*os.File{os.Stdin}); err != nil {
		t.Fatal(err)
	}
	conn, err := place.leave()
	if err != nil || conn == nil {
		t.Fatalf("it left: %v", err)
	}
	files, err := receive(conn)
	if err != nil || len(files) != 1 {
		t.Errorf("%d files, %v", len(files), err)
	}
	conn.Close()
	if conn, err := place.leave(); conn != nil || err != nil || !pool.Empty() {
		t.Errorf("it stays: %v, %v", conn, err)
	}
}

// A VM that has died by the time that it could be taken is not offered.
func TestADeadVMDoesNotWait(t *testing.T) {
	pool, place := listening(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if files, err := place.Await(ctx, time.Hour); files != nil || err != nil || !pool.Empty() {
		t.Errorf("it waited: %v, %v", files, err)
	}
}

func TestEnoughAreEnough(t *testing.T) {
	pool := &Pool{Dir: t.TempDir(), Size: 1}
	first := waits(t, waiter{pool.Dir, 1, key, time.Minute})
	if got := start(t, waiter{pool.Dir, 1, key, time.Minute}).line(t); got != ErrEnough.Error() {
		t.Errorf("a second one says %q", got)
	}
	second := waits(t, waiter{pool.Dir, 1, other, time.Minute}) // another kind is wanted more
	if got := first.line(t); got != "" {
		t.Errorf("the first one says %q", got)
	}
	if taken, err := pool.Take(key); taken != nil || err != nil {
		t.Errorf("the first one waits: %v, %v", taken, err)
	}
	if err := pool.End(key.Template); err != nil || pool.Empty() {
		t.Errorf("the end of another template's: %v", err)
	}
	if err := pool.End(other.Template); err != nil || !pool.Empty() {
		t.Errorf("the end of its template's: %v", err)
	}
	second.cmd.Wait()
}

func TestSweep(t *testing.T) {
	pool := &Pool{Dir: t.TempDir(), Size: 2}
	dead := waits(t, waiter{pool.Dir, 2, key, time.Minute})
	lives := waits(t, waiter{pool.Dir, 2, key, time.Minute})
	dead.cmd.Process.Kill()
	dead.cmd.Wait()
	if err := pool.Sweep(2); err != nil {
		t.Fatal(err)
	}
	if all, err := pool.entries(); len(all) != 1 || err != nil {
		t.Fatalf("left are %v, %v", all, err)
	}
	early := start(t, waiter{pool.Dir, 2, key, time.Minute})
	if got := early.line(t); got != "place" {
		t.Fatal(got)
	}
	if err := pool.Sweep(0); err != nil || !pool.Empty() {
		t.Fatalf("left: %v", err)
	}
	if got := lives.line(t); got != "" {
		t.Errorf("it says %q", got)
	}
	fmt.Fprintln(early.in, "go") // one that was still getting ready finds its place gone
	if got := early.line(t); len(got) < 10 || got[:10] != "the waitin" {
		t.Errorf("it says %q", got)
	}
}

// A launcher's message is checked, though it comes from the same user.
func TestNonsenseIsRefused(t *testing.T) {
	_, place := listening(t)
	for name, rights := range map[string][]byte{"none": nil, "too few": unix.UnixRights(0)} {
		taken, err := connect(place.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := taken.conn.WriteMsgUnix([]byte{2}, rights, nil); err != nil {
			t.Fatal(err)
		}
		conn, err := place.listener.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		if files, err := receive(conn); err == nil {
			t.Errorf("%s: %d files", name, len(files))
		}
		conn.Close()
		taken.Close()
	}
}
