package tests

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/dgm"
)

// How long a program may take before the test gives it up.
const (
	readyWithin = 60 * time.Second
	stopWithin  = 30 * time.Second
	runWithin   = 2 * time.Minute
)

// dir returns a new directory with a short path; it is removed with the test.
func dir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp(scratch, "")
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// A daemon is a gearsfsd that a test starts, kills and starts again.
type daemon struct {
	t     testing.TB
	data  string
	mount string // its mount point, or ""
	args  []string
	addr  string // of its unix socket

	program string     // in binDir; "" is gearsfsd
	env     []string   // on top of the caller's
	net     *namespace // where it runs; nil is where the tests do

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	output *tail         // of cmd
	words  tail          // of all that ran before it too
}

// newDaemon describes a daemon with a data directory of its own; more flags may
// follow. It does not run yet.
func newDaemon(t testing.TB, args ...string) *daemon {
	t.Helper()
	d := dir(t)
	node := &daemon{t: t, data: filepath.Join(d, "data"), addr: "unix:" + filepath.Join(d, "s"), args: args}
	t.Cleanup(func() {
		if node.running() {
			node.stop()
		}
		if t.Failed() && node.output != nil {
			t.Logf("the last words of the daemon at %s:\n%s", node.addr, &node.words)
		}
	})
	return node
}

// startDaemon starts one and returns when it is ready.
func startDaemon(t testing.TB, args ...string) *daemon {
	t.Helper()
	d := newDaemon(t, args...)
	d.start()
	return d
}

// startMounted starts one that is mounted and returns it when it is ready.
func startMounted(t testing.TB, args ...string) *daemon {
	t.Helper()
	d := newDaemon(t, args...)
	d.withMount()
	d.start()
	return d
}

// withMount has the daemon mount when it starts.
func (d *daemon) withMount() {
	d.t.Helper()
	d.mount = filepath.Join(filepath.Dir(d.data), "m")
	require.NoError(d.t, os.Mkdir(d.mount, 0o755))
	d.t.Cleanup(func() { detach(d.t, d.mount) })
}

// detach removes a mount that a killed daemon has left.
func detach(t testing.TB, mount string) {
	for _, m := range leakedMounts() {
		if m != mount {
			continue
		}
		if out, err := exec.Command("umount", "-l", mount).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", mount, err, out)
		}
	}
}

func (d *daemon) running() bool {
	if d.exited == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// start starts the daemon and waits until it says that it is ready.
func (d *daemon) start() {
	d.t.Helper()
	require.NoError(d.t, d.tryStart())
}

// tryStart is start for a daemon that may fail; its error has the last words.
func (d *daemon) tryStart() error {
	args := append([]string{"--data", d.data, "--listen", d.addr}, d.args...)
	if d.mount != "" {
		args = append(args, "--mount", d.mount)
	}
	d.cmd = exec.Command(filepath.Join(binDir, cmp.Or(d.program, "gearsfsd")), args...)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.output = &tail{}
	ready := make(chan struct{})
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		return err
	}
	begin := d.cmd.Start
	if d.net != nil {
		begin = func() error { return d.net.run(d.cmd.Start) }
	}
	if err := begin(); err != nil {
		return err
	}
	exited, cmd, output := make(chan struct{}), d.cmd, d.output
	d.exited = exited
	go func() {
		var once sync.Once
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			output.add(lines.Text())
			d.words.add(lines.Text())
			if lines.Text() == "gearsfsd: ready" {
				once.Do(func() { close(ready) })
			}
		}
		_ = cmd.Wait() // its status is in ProcessState
		close(exited)
	}()
	select {
	case <-ready:
		return nil
	case <-exited:
		return fmt.Errorf("gearsfsd ended with %v:\n%s", cmd.ProcessState, output)
	case <-time.After(readyWithin):
		d.kill()
		return fmt.Errorf("gearsfsd was not ready within %v:\n%s", readyWithin, output)
	}
}

// kill is kill -9; it returns when the process is gone.
func (d *daemon) kill() {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Kill())
	<-d.exited
}

// stop is SIGTERM; the daemon must end with status 0.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Errorf("stop gearsfsd: %v", err)
	}
	select {
	case <-d.exited:
		if status := d.cmd.ProcessState.ExitCode(); status != 0 {
			d.t.Errorf("gearsfsd ended with %v on SIGTERM:\n%s", d.cmd.ProcessState, d.output)
		}
	case <-time.After(stopWithin):
		d.t.Errorf("gearsfsd did not end within %v of SIGTERM:\n%s", stopWithin, d.output)
		d.kill()
	}
}

// peakRSS returns the most memory that the daemon has had resident, in bytes.
func (d *daemon) peakRSS() uint64 {
	d.t.Helper()
	return peakRSSOf(d.t, d.cmd.Process.Pid)
}

func peakRSSOf(t testing.TB, pid int) uint64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				t.Error(err)
			}
			return kib << 10
		}
	}
	t.Errorf("no VmHWM in the status of process %d", pid)
	return 0
}

// dial opens a session on the daemon; it is closed with the test.
func (d *daemon) dial() *dgm.Remote {
	d.t.Helper()
	return dialAt(d.t, d.addr)
}

func dialAt(t testing.TB, addr string) *dgm.Remote {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWithin)
	defer cancel()
	r, err := dgm.Dial(ctx, addr, dgm.RemoteOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Logf("close the session: %v", err)
		}
	})
	return r
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// A tail keeps the last lines of an output.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (o *tail) add(line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lines = append(o.lines, line); len(o.lines) > 60 {
		o.lines = o.lines[30:]
	}
}

func (o *tail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines, "\n")
}
