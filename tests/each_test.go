package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A job is a gearsfs that a test starts, signals and waits for. It leads a
// process group, as a shell's job does.
type job struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
	ended  chan struct{}
}

// startJob starts `gearsfs args...`, or another program, on a node.
func startJob(t testing.TB, d *daemon, temp, name string, args ...string) *job {
	t.Helper()
	w := &job{t: t, cmd: exec.Command(name, args...), ended: make(chan struct{})}
	w.cmd.Env = append(os.Environ(), "GEARSFS_NODE="+d.addr, "TMPDIR="+temp, "PATH="+binDir+":"+os.Getenv("PATH"))
	w.cmd.Stdout, w.cmd.Stderr = &w.stdout, &w.stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, w.cmd.Start())
	go func() {
		_ = w.cmd.Wait() // its status is in ProcessState
		close(w.ended)
	}()
	t.Cleanup(w.kill)
	return w
}

// signal sends a signal to the worker's process group.
func (w *job) signal(s syscall.Signal) {
	if err := syscall.Kill(-w.cmd.Process.Pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		w.t.Errorf("signal a worker: %v", err)
	}
}

// kill is kill -9; it returns when the process is gone.
func (w *job) kill() {
	if !w.running() {
		return
	}
	w.signal(syscall.SIGKILL)
	<-w.ended
}

func (w *job) running() bool {
	select {
	case <-w.ended:
		return false
	default:
		return true
	}
}

// wait waits for the end and returns the exit status, 128+n by a signal.
func (w *job) wait() int {
	w.t.Helper()
	select {
	case <-w.ended:
	case <-time.After(runWithin):
		require.Fail(w.t, "a worker hangs", "%q: %s", w.cmd.Args, w.stderr.String())
	}
	if ws, ok := w.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return w.cmd.ProcessState.ExitCode()
}

// putNumbers puts the numbers below n as records, and seals the stream.
func putNumbers(t testing.TB, d *daemon, file, key string, n int) {
	t.Helper()
	var lines strings.Builder
	for i := range n {
		fmt.Fprintln(&lines, i)
	}
	c := command{env: []string{"GEARSFS_NODE=" + d.addr}, stdin: strings.NewReader(lines.String())}
	c.must(t, gearsfsPath(), "put", file, key, "-l", "--seal")
}

// Workers are killed -9, and so is the daemon, all the time: each record's
// output is there exactly once in the end, and nothing else is.
func TestEachUnderKills(t *testing.T) {
	t.Parallel()
	workers, records := size(6, 64), size(3_000, 200_000)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	d, temp := startDaemon(t), dir(t)
	putNumbers(t, d, ":/in", "q", records)
	start := func() *job {
		return startJob(t, d, temp, gearsfsPath(), "each", ":/in", "q", "-j", "2", "--put", ":/out", "q", "--put", ":/out", "copy",
			"--tries", "0", "--seal", "--", "printf", "done %s", "{}")
	}
	running := make([]*job, workers)
	for i := range running {
		running[i] = start()
	}
	kills, deaths := 0, 0
	for began := time.Now(); !drainedAt(t, d, "/in", "q"); {
		select {
		case <-time.After(time.Duration(200+rng.IntN(600)) * time.Millisecond): // when to strike
		case <-t.Context().Done():
			require.NoError(t, t.Context().Err())
		}
		if kills++; kills%2 == 0 {
			d.kill()
			d.start()
			continue
		}
		i := rng.IntN(workers)
		running[i].kill()
		running[i] = start()
		deaths++
		require.Less(t, time.Since(began), time.Duration(size(120, 3600))*time.Second, "too slow")
	}
	t.Logf("%d workers and the daemon %d times were killed", deaths, kills-deaths)
	for _, w := range running {
		status := w.wait()
		require.Zero(t, status, "a worker: %s", w.stderr.String())
	}
	for _, key := range []string{"q", "copy"} {
		requireNumbers(t, d, key, records)
	}
	require.Equal(t, 4, d.gearsfs("take", ":/out", "q").status, "sealed")
	require.Equal(t, 3, d.gearsfs("take", ":/in", "q.dead", "--no-wait").status, "nothing died")
}

// drainedAt reports whether nothing is left of a stream.
func drainedAt(t testing.TB, d *daemon, path string, key gearsfs.Key) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWithin)
	defer cancel()
	m, err := dgm.Dial(ctx, d.addr, dgm.RemoteOptions{})
	require.NoError(t, err)
	defer m.Close()
	info, err := m.Stream(ctx, gearsfs.At(path), key)
	require.NoError(t, err)
	return info.Records+info.Leased+info.Delayed == 0
}

// requireNumbers takes all of a stream of /out, which must be `done N` for each
// N below n, once.
func requireNumbers(t testing.TB, d *daemon, key string, n int) {
	t.Helper()
	seen := make([]bool, n)
	for line := range strings.Lines(command{env: []string{"GEARSFS_NODE=" + d.addr}}.must(t, gearsfsPath(), "take", ":/out", key, "-f")) {
		text, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "done ")
		number, err := strconv.Atoi(text)
		require.True(t, ok && err == nil && number >= 0 && number < n, "%q was put by nobody", line)
		require.False(t, seen[number], "%d is there twice", number)
		seen[number] = true
	}
	for number, there := range seen {
		require.True(t, there, "%d is lost", number)
	}
}

// nonePending says whether a process has been handed over all its signals.
func nonePending(t *testing.T, pid int) bool {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	return strings.Contains(string(status), "\nShdPnd:\t0000000000000000\n")
}

// The first ^C lets what runs end; the second gives it back.
func TestEachSignals(t *testing.T) {
	t.Parallel()
	d, temp := startDaemon(t), dir(t)
	putNumbers(t, d, ":/in", "q", 3)
	script := `: > ` + temp + `/began$1; until [ -e ` + temp + `/go ]; do sleep 0.01; done; echo $1`
	each := func() *job {
		return startJob(t, d, temp, gearsfsPath(), "each", ":/in", "q", "--put", ":/out", "q", "--", "sh", "-c", script, "sh", "{}")
	}
	began := func(i int) {
		require.Eventually(t, func() bool { _, err := os.Stat(fmt.Sprintf("%s/began%d", temp, i)); return err == nil }, readyWithin, time.Millisecond)
	}
	w := each()
	began(0)
	w.signal(syscall.SIGINT)
	// Of two that are pending the kernel may hand over the second first.
	require.Eventually(t, func() bool { return nonePending(t, w.cmd.Process.Pid) }, readyWithin, time.Millisecond)
	w.signal(syscall.SIGTERM)
	require.Equal(t, 128+15, w.wait(), w.stderr.String())
	r := d.gearsfs("peek", ":/in", "q", "-n", "all")
	require.Equal(t, "0\n1\n2\n", r.stdout, "it was given back")

	require.NoError(t, os.Remove(temp+"/began0"))
	w = each()
	began(0)
	w.signal(syscall.SIGTERM)
	require.NoError(t, os.WriteFile(temp+"/go", nil, 0o600))
	require.Equal(t, 128+15, w.wait(), w.stderr.String())
	require.Equal(t, "0\n", d.gearsfs("take", ":/out", "q", "-n", "all").stdout)
	require.Equal(t, "1\n2\n", d.gearsfs("take", ":/in", "q", "-n", "all").stdout)
	left, err := filepath.Glob(temp + "/gearsfs-each-*")
	require.NoError(t, err)
	require.Empty(t, left)
}

// A worker that was killed leaves its directory, which the next one removes, and
// none of a worker that lives.
func TestEachSweepsAfterTheKilled(t *testing.T) {
	t.Parallel()
	d, temp := startDaemon(t), dir(t)
	putNumbers(t, d, ":/in", "q", 3)
	script := `: > ` + temp + `/began$1; until [ -e ` + temp + `/go ]; do sleep 0.01; done; cat $GEARSFS_IN/0`
	each := func(i int) *job {
		w := startJob(t, d, temp, gearsfsPath(), "each", ":/in", "q", "-n", "1", "--put", ":/out", "q", "--", "sh", "-c", script, "sh", "{}")
		require.Eventually(t, func() bool { _, err := os.Stat(fmt.Sprintf("%s/began%d", temp, i)); return err == nil }, readyWithin, time.Millisecond)
		return w
	}
	left := func() int {
		dirs, err := filepath.Glob(temp + "/gearsfs-each-*")
		require.NoError(t, err)
		return len(dirs)
	}
	lives, killed := each(0), each(1)
	require.Equal(t, 2, left())
	killed.kill()
	require.Equal(t, 2, left())
	require.NoError(t, os.Remove(temp+"/began1"))
	next := each(1) // its record is back
	require.Equal(t, 2, left(), "the first one's and the new one's")
	require.NoError(t, os.WriteFile(temp+"/go", nil, 0o600))
	require.Zero(t, lives.wait(), lives.stderr.String())
	require.Zero(t, next.wait(), next.stderr.String())
	require.ElementsMatch(t, []string{"0", "1"}, strings.Fields(d.gearsfs("take", ":/out", "q", "-n", "all").stdout))
	require.Zero(t, left())
}

// A command that writes 1 GiB fails for that, and its worker's memory stays
// bounded.
func TestEachMemory(t *testing.T) {
	t.Parallel()
	d, temp := startDaemon(t), dir(t)
	putNumbers(t, d, ":/in", "q", 2)
	w := startJob(t, d, temp, gearsfsPath(), "each", ":/in", "q", "--put", ":/out", "q", "--tries", "1", "--",
		"sh", "-c", `[ "$1" = 0 ] || until [ -e `+temp+`/go ]; do sleep 0.01; done; head -c 1G /dev/zero`, "sh", "{}")
	require.Eventually(t, func() bool { return d.gearsfs("peek", ":/in", "q.dead", "--no-wait").status == 0 }, runWithin, 10*time.Millisecond)
	require.Less(t, peakRSSOf(t, w.cmd.Process.Pid), uint64(160<<20))
	require.NoError(t, os.WriteFile(temp+"/go", nil, 0o600))
	require.Equal(t, 1, w.wait())
	require.Equal(t, 2, strings.Count(w.stderr.String(), "wrote more than the 16 MiB"), w.stderr.String())
	require.Equal(t, 3, d.gearsfs("take", ":/out", "q", "--no-wait").status)
}

// The example goes on where it was after everything was killed.
func TestDiamond(t *testing.T) {
	t.Parallel()
	d, temp := startDaemon(t), dir(t)
	var text, clean strings.Builder
	for i := range size(300, 3_000) {
		line := fmt.Sprintf("%d %s", i, strings.Repeat("word ", i%7))
		fmt.Fprintf(&text, "%s\r\n", line)
		clean.WriteString(line)
	}
	file := filepath.Join(temp, "text")
	require.NoError(t, os.WriteFile(file, []byte(text.String()), 0o600))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 3 {
		w := startJob(t, d, temp, "../examples/diamond.sh", ":/diamond", file)
		select {
		case <-w.ended:
			require.Zero(t, w.wait(), w.stderr.String())
		case <-time.After(time.Duration(200+rng.IntN(800)) * time.Millisecond): // when to strike
		}
		w.kill()
		d.kill()
		d.start()
	}
	w := startJob(t, d, temp, "../examples/diamond.sh", ":/diamond", file)
	require.Zero(t, w.wait(), w.stderr.String())
	want := fmt.Sprintf("%d %d\n", len(strings.Fields(text.String())), len(clean.String()))
	require.Equal(t, want, w.stdout.String())
	again := startJob(t, d, temp, "../examples/diamond.sh", ":/diamond", file)
	require.Zero(t, again.wait(), again.stderr.String())
	require.Equal(t, want, again.stdout.String())
}

// A permit goes back when its holder dies, and a holder that can't reach its
// node has its command killed before another may hold the permit.
func TestHoldIsLost(t *testing.T) {
	t.Parallel()
	d, temp := startDaemon(t), dir(t)
	script := `: > ` + temp + `/$1; echo $$ > ` + temp + `/$1; exec sleep 1000`
	hold := func(name string) *job {
		w := startJob(t, d, temp, gearsfsPath(), "hold", ":/l", "lock", "--lease", "2s", "--", "sh", "-c", script, "sh", name)
		require.Eventually(t, func() bool {
			pid, err := os.ReadFile(temp + "/" + name)
			return err == nil && len(pid) > 0
		}, readyWithin, time.Millisecond)
		return w
	}
	alive := func(name string) bool {
		pid, err := os.ReadFile(temp + "/" + name)
		require.NoError(t, err)
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err == nil && !strings.Contains(string(stat), ") Z ")
	}
	first := hold("first")
	d.gearsfs("hold", ":/l", "lock", "--no-wait", "--", "true").requireError(t, 3, "held")
	first.kill()
	require.Eventually(t, func() bool { return !alive("first") }, readyWithin, time.Millisecond, "COMMAND dies with its holder")

	second := hold("second") // when the first one's lease is over
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGSTOP))
	require.Equal(t, 128+9, second.wait())
	require.False(t, alive("second"))
	require.Contains(t, second.stderr.String(), "the permit was lost")
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGCONT))
	require.Zero(t, d.gearsfs("hold", ":/l", "lock", "--wait", "1m", "--", "true").status)
}
