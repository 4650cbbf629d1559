package tests

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// mounted is a `gearsfs mount`: a supervisor and the worker that serves.
type mounted struct {
	t      testing.TB
	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
	words  tail
}

// startMount runs gearsfs mount on a new directory until the test ends.
func startMount(t testing.TB, args ...string) *mounted {
	t.Helper()
	return startMountOf(t, gearsfsPath(), args...)
}

func startMountOf(t testing.TB, program string, args ...string) *mounted {
	t.Helper()
	m := &mounted{t: t, dir: filepath.Join(dir(t), "m"), exited: make(chan struct{})}
	require.NoError(t, os.Mkdir(m.dir, 0o755))
	t.Cleanup(func() { detach(t, m.dir) })
	m.cmd = exec.Command(program, append(append([]string{"mount"}, args...), m.dir)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := m.cmd.StdoutPipe()
	require.NoError(t, err)
	stderr, err := m.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, m.cmd.Start())
	said := make(chan struct{})
	go func() {
		defer close(said)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			m.words.add(lines.Text())
		}
	}()
	ready := make(chan struct{})
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if lines.Text() == "mounted on "+m.dir {
				close(ready)
			}
		}
		<-said
		m.cmd.Wait() //nolint:errcheck // ProcessState tells
		close(m.exited)
	}()
	t.Cleanup(func() {
		m.stop()
		if t.Failed() {
			t.Logf("what the mount said:\n%s", &m.words)
		}
	})
	select {
	case <-ready:
	case <-m.exited:
		require.FailNow(t, "the mount ended", "%v\n%s", m.cmd.ProcessState, &m.words)
	case <-time.After(readyWithin):
		require.FailNow(t, "the mount was not ready", "%s", &m.words)
	}
	return m
}

func (m *mounted) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

// worker returns the process that serves, once there is one.
func (m *mounted) worker() (pid int) {
	m.t.Helper()
	require.Eventually(m.t, func() bool {
		select {
		case <-m.exited:
			require.FailNow(m.t, "the mount ended", "%v\n%s", m.cmd.ProcessState, &m.words)
		default:
		}
		pid = m.tryWorker()
		return pid != 0
	}, readyWithin, 2*time.Millisecond, "the mount has no process")
	return pid
}

// tryWorker returns the process that serves now, 0 for none.
func (m *mounted) tryWorker() int {
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", m.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for _, name := range children {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // a thread that has ended
		}
		if child, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return child
		}
	}
	return 0
}

// kill is kill -9 of the worker; another one takes over.
func (m *mounted) kill() {
	m.t.Helper()
	if err := syscall.Kill(m.worker(), syscall.SIGKILL); err != nil {
		require.ErrorIs(m.t, err, syscall.ESRCH)
	}
}

// stop is SIGTERM; the mount must end with status 0, and its processes with it.
func (m *mounted) stop() {
	m.t.Helper()
	select {
	case <-m.exited:
		return
	default:
	}
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Errorf("stop the mount: %v", err)
	}
	select {
	case <-m.exited:
		if status := m.cmd.ProcessState.ExitCode(); status != 0 {
			m.t.Errorf("the mount ended with %v on SIGTERM:\n%s", m.cmd.ProcessState, &m.words)
		}
	case <-time.After(stopWithin):
		m.t.Errorf("the mount did not end within %v of SIGTERM:\n%s", stopWithin, &m.words)
		m.cmd.Process.Signal(syscall.SIGQUIT) //nolint:errcheck // it may have ended
		<-m.exited
	}
}
