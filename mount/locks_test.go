package mount_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

func init() { children["lock"] = lockOnDemand }

// lockOnDemand opens a file and does what lines on standard input say, answering
// each with "ok" or an errno:
//
//	flock|fcntl|ofd try|wait read|write|none START END
//	get START END          who has a write lock's way
//	reopen                 opens the file once more and closes that
//	leave                  starts a process that keeps the descriptor, and ends
func lockOnDemand(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	fmt.Println("ok")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var word, how, kind string
		var start, end int64
		_, err := fmt.Sscan(in.Text(), &word, &how, &kind, &start, &end)
		switch {
		case word == "reopen":
			var again *os.File
			if again, err = os.Open(args[0]); err == nil {
				err = again.Close()
			}
		case word == "leave":
			heir := exec.Command("sleep", "60")
			heir.ExtraFiles = []*os.File{f}
			if err = heir.Start(); err == nil {
				fmt.Println("ok", heir.Process.Pid)
				return nil
			}
		case err != nil:
			return err
		case word == "flock":
			err = unix.Flock(int(f.Fd()), flockHow(how, kind))
		default:
			lk := unix.Flock_t{Type: lockType(kind), Start: start, Len: end - start + 1}
			err = unix.FcntlFlock(f.Fd(), fcntlHow(word, how), &lk)
			if err == nil && how == "get" {
				fmt.Println("ok", lk.Type, lk.Start, lk.Len, lk.Pid)
				continue
			}
		}
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println("ok")
	}
	return nil
}

func flockHow(how, kind string) int {
	op := map[string]int{"read": unix.LOCK_SH, "write": unix.LOCK_EX, "none": unix.LOCK_UN}[kind]
	if how == "try" {
		op |= unix.LOCK_NB
	}
	return op
}

func fcntlHow(word, how string) int {
	return map[string]int{
		"fcntl try": unix.F_SETLK, "fcntl wait": unix.F_SETLKW, "fcntl get": unix.F_GETLK,
		"ofd try": unix.F_OFD_SETLK, "ofd wait": unix.F_OFD_SETLKW, "ofd get": unix.F_OFD_GETLK,
	}[word+" "+how]
}

func lockType(kind string) int16 {
	return map[string]int16{"read": unix.F_RDLCK, "write": unix.F_WRLCK, "none": unix.F_UNLCK}[kind]
}

// locker is a process that locks a file.
type locker struct {
	t       *testing.T
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan string
}

func newLocker(t *testing.T, path string) *locker {
	t.Helper()
	l := &locker{t: t, cmd: child("lock", path), answers: make(chan string)}
	var err error
	l.in, err = l.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := l.cmd.StdoutPipe()
	require.NoError(t, err)
	l.cmd.Stderr = os.Stderr
	require.NoError(t, l.cmd.Start())
	go func() {
		defer close(l.answers)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			l.answers <- lines.Text()
		}
	}()
	t.Cleanup(l.kill)
	require.Equal(t, "ok", l.answer())
	return l
}

func (l *locker) kill() {
	l.cmd.Process.Kill() //nolint:errcheck // it may be over
	for range l.answers {
	}
	l.cmd.Wait() //nolint:errcheck // it was killed
}

func (l *locker) say(line string) {
	l.t.Helper()
	_, err := fmt.Fprintln(l.in, line)
	require.NoError(l.t, err)
}

func (l *locker) answer() string {
	l.t.Helper()
	answer, ok := <-l.answers
	require.True(l.t, ok, "it is over")
	return answer
}

// does says a line and returns the answer.
func (l *locker) does(line string) string {
	l.t.Helper()
	l.say(line)
	return l.answer()
}

func (l *locker) ok(line string) {
	l.t.Helper()
	require.Equal(l.t, "ok", l.does(line), line)
}

const busy = "resource temporarily unavailable"

func (l *locker) busy(line string) {
	l.t.Helper()
	require.Equal(l.t, busy, l.does(line), line)
}

// waits says a line and returns when n locks wait.
func (f fixture) waits(t *testing.T, l *locker, line string, n int) {
	t.Helper()
	l.say(line)
	f.untilWaiting(t, n)
}

func (f fixture) untilWaiting(t *testing.T, n int) {
	t.Helper()
	eventually(t, "locks wait", func() bool {
		waits, err := f.other.Waits(t.Context())
		require.NoError(t, err)
		return len(waits) == n
	})
}

// twoMounts returns a volume with a file, and the file's path in two mounts.
func twoMounts(t *testing.T) (f fixture, here, there string) {
	f = newFixture(t)
	dir := t.TempDir()
	mountOn(t, session(t, f.vol), dir, "")
	require.NoError(t, os.WriteFile(f.path("f"), []byte("hello"), 0o644))
	return f, f.path("f"), filepath.Join(dir, "f")
}

func TestLocksOverMounts(t *testing.T) {
	_, here, there := twoMounts(t)
	a, b, c := newLocker(t, here), newLocker(t, there), newLocker(t, there)
	a.ok("fcntl try write 0 9")
	b.busy("fcntl try read 5 5")
	b.ok("fcntl try write 10 19")
	c.busy("fcntl try write 19 30")
	require.Equal(t, fmt.Sprintf("ok %d 10 10 %d", unix.F_WRLCK, b.cmd.Process.Pid), c.does("fcntl get write 10 99"))
	require.Equal(t, fmt.Sprintf("ok %d 0 10 0", unix.F_WRLCK), c.does("fcntl get read 0 5"), "a process of another mount has no number here")
	require.Equal(t, fmt.Sprintf("ok %d 20 10 0", unix.F_UNLCK), c.does("fcntl get write 20 29"))

	a.ok("flock try write 0 0")
	b.busy("flock try read 0 0")
	a.ok("flock try read 0 0")
	b.ok("flock try read 0 0")
	b.busy("flock try write 0 0")
	a.ok("flock try none 0 0")
	b.ok("flock try write 0 0")
}

func TestLockIsWaitedFor(t *testing.T) {
	for _, api := range []string{"flock", "fcntl", "ofd"} {
		t.Run(api, func(t *testing.T) {
			f, here, there := twoMounts(t)
			a, b, c := newLocker(t, here), newLocker(t, there), newLocker(t, there)
			a.ok(api + " wait write 0 9")
			f.waits(t, b, api+" wait write 0 9", 1)
			f.waits(t, c, api+" wait write 0 9", 2)
			a.ok(api + " wait none 0 9")
			require.Equal(t, "ok", b.answer())
			b.kill() // SIGKILL of who has it
			require.Equal(t, "ok", c.answer())

			f.waits(t, a, api+" wait read 0 9", 1)
			a.kill() // SIGKILL of who waits
			f.untilWaiting(t, 0)
		})
	}
}

func TestLockEndsWithClose(t *testing.T) {
	f, here, there := twoMounts(t)
	a, b := newLocker(t, here), newLocker(t, there)
	a.ok("fcntl try write 0 9")
	a.ok("ofd try write 20 29")
	a.ok("flock try write 0 0")
	a.ok("reopen") // any descriptor's end ends those of the process
	b.ok("fcntl try write 0 9")
	b.busy("ofd try write 20 29")
	b.busy("flock try write 0 0")
	b.ok("fcntl try none 0 9")

	a.ok("fcntl try write 0 9")
	var heir int
	_, err := fmt.Sscanf(a.does("leave"), "ok %d", &heir)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Kill(heir, unix.SIGKILL) }) //nolint:errcheck // it may be over
	require.NoError(t, a.cmd.Wait())
	b.ok("fcntl wait write 0 9") // was the process's
	b.busy("ofd try write 20 29")
	f.waits(t, b, "ofd wait write 20 29", 1)
	require.NoError(t, unix.Kill(heir, unix.SIGKILL)) // has the last descriptor
	require.Equal(t, "ok", b.answer())
	b.ok("flock wait write 0 0")
}

func TestLockDeadlock(t *testing.T) {
	f, here, there := twoMounts(t)
	a, b := newLocker(t, here), newLocker(t, there)
	a.ok("fcntl wait write 0 9")
	b.ok("fcntl wait write 10 19")
	f.waits(t, a, "fcntl wait write 10 19", 1)
	require.Equal(t, "resource deadlock avoided", b.does("fcntl wait read 5 5"))
	b.ok("fcntl wait none 10 19")
	require.Equal(t, "ok", a.answer())
}

// TestFlockConverted: two who convert their locks do not wait for each other.
func TestFlockConverted(t *testing.T) {
	f, here, there := twoMounts(t)
	a, b := newLocker(t, here), newLocker(t, there)
	a.ok("flock wait read 0 0")
	b.ok("flock wait read 0 0")
	f.waits(t, a, "flock wait write 0 0", 1)
	b.ok("flock wait write 0 0") // nobody else has one, as a has given up its own
	b.ok("flock wait none 0 0")
	require.Equal(t, "ok", a.answer())
}

// TestLocksShowWhatWasWritten: who gets a lock sees what was written under it by
// the other mount, in a file that both have open and in their caches.
func TestLocksShowWhatWasWritten(t *testing.T) {
	_, here, there := twoMounts(t)
	var files []*os.File
	for _, path := range []string{here, there} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		files = append(files, f)
	}
	for i := range 200 {
		f := files[i%2]
		require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
		require.NoError(t, err)
		if i > 0 {
			require.Equal(t, strings.Repeat("x", i), string(data))
		}
		_, err = f.WriteAt([]byte(strings.Repeat("x", i+1)), 0)
		require.NoError(t, err)
		if i == 0 {
			require.NoError(t, f.Truncate(1))
		}
		require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	}
}

// TestLockEndsWithMount ends the session of one mount while a process there has a
// lock.
func TestLockEndsWithMount(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	m := session(t, f.vol)
	mountOn(t, m, dir, "")
	require.NoError(t, os.WriteFile(f.path("f"), nil, 0o644))
	a, b := newLocker(t, filepath.Join(dir, "f")), newLocker(t, f.path("f"))
	a.ok("flock wait write 0 0")
	f.waits(t, b, "flock wait write 0 0", 1)
	require.NoError(t, m.Close())
	require.Equal(t, "ok", b.answer())
}

// TestFlockAgainAndAgain: who takes a lock right after its process has ended, by
// closing the file, is not told that it is locked.
func TestFlockAgainAndAgain(t *testing.T) {
	f := newFixture(t)
	out := f.mustShell(t, "for i in {1..100}; do flock -n f true || echo $i; done")
	require.Empty(t, strings.Fields(out))
	_, err := f.other.Lookup(t.Context(), gearsfs.RootIno, "f")
	require.NoError(t, err)
}

// TestSQLiteOverMounts has processes of two mounts write to one database.
func TestSQLiteOverMounts(t *testing.T) {
	f, here, there := twoMounts(t)
	out := f.mustShell(t, fmt.Sprintf(`
cd %s && sqlite3 db 'create table t(a integer primary key, b text)'
for dir in %[1]s %[2]s; do
	for i in $(seq 25); do
		sqlite3 -cmd '.timeout 50000' $dir/db "insert into t(b) values('$i'); update t set b = b || 'x' where a %% 3 = 0"
	done &
done
wait
sqlite3 %[2]s/db 'select count(*) from t; pragma integrity_check'`, filepath.Dir(here), filepath.Dir(there)))
	require.Equal(t, "50\nok\n", out)
}
