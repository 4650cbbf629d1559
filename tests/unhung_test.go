package tests

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Another program takes over a mount that is in use.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	program := filepath.Join(dir(t), "gearsfs")
	install := func(content []byte) {
		require.NoError(t, os.WriteFile(program+".new", content, 0o755))
		require.NoError(t, os.Rename(program+".new", program))
	}
	good, err := os.ReadFile(gearsfsPath())
	require.NoError(t, err)
	install(good)
	data := filepath.Join(dir(t), "data")
	m := startMountOf(t, program, "--data", data)

	file, err := os.OpenFile(m.path("file"), os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	defer file.Close()
	gone, err := os.OpenFile(m.path("gone"), os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	defer gone.Close()
	for _, f := range []*os.File{file, gone} {
		_, err := f.WriteString("before, ")
		require.NoError(t, err)
	}
	require.NoError(t, os.Remove(m.path("gone")))
	require.NoError(t, unix.Flock(int(file.Fd()), unix.LOCK_EX))
	for i := range 300 {
		require.NoError(t, os.WriteFile(m.path(fmt.Sprintf("many-%03d", i)), nil, 0o644))
	}
	listing, err := os.Open(m.dir)
	require.NoError(t, err)
	defer listing.Close()
	seen, err := listing.Readdirnames(100)
	require.NoError(t, err)
	waiting := exec.Command("cat", m.path(".gears", "streams", "q", "k", "take"))
	var got bytes.Buffer
	waiting.Stdout = &got
	require.NoError(t, waiting.Start())

	for _, to := range []struct {
		content []byte
		serves  bool
	}{{append(good, "\n"...), true}, {[]byte("not a program"), false}, {[]byte("#!/bin/false\n"), false}, {good, true}} {
		install(to.content)
		before := m.worker()
		out := must(t, "", gearsfsPath(), "mount", "--upgrade", m.dir)
		assert.NotEqual(t, before, m.worker())
		assert.Equal(t, !to.serves, strings.Contains(out, "same program as before"), out)
	}

	for _, f := range []*os.File{file, gone} {
		_, err := f.WriteString("after")
		require.NoError(t, err)
		_, err = f.Seek(0, io.SeekStart)
		require.NoError(t, err)
		all, err := io.ReadAll(f)
		require.NoError(t, err)
		assert.Equal(t, "before, after", string(all))
	}
	second, err := os.Open(m.path("file"))
	require.NoError(t, err)
	defer second.Close()
	assert.ErrorIs(t, unix.Flock(int(second.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK, "it is locked as before")
	rest, err := listing.Readdirnames(-1)
	require.NoError(t, err)
	assert.Len(t, append(seen, rest...), 301, "a listing goes on where it was")
	must(t, "", gearsfsPath(), "put", m.path("q"), "k", "record")
	require.NoError(t, waiting.Wait())
	assert.Equal(t, "record", got.String())
}

// A node that does not answer: calls end, by themselves or when their process
// is interrupted, and go on when it is back.
func TestFrozenNode(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	short := startMount(t, "--node", d.addr, "-o", "timeout=4")
	long := startMount(t, "--node", d.addr, "-o", "timeout=600")
	for _, m := range []*mounted{short, long} {
		require.NoError(t, os.WriteFile(m.path("file"), []byte("content"), 0o644))
	}
	defer d.cmd.Process.Signal(syscall.SIGCONT) //nolint:errcheck // so that it can end
	for _, killed := range []bool{false, true} {
		freeze(t, d.cmd.Process.Pid)
		if killed {
			short.kill()
			long.kill()
		}
		name := fmt.Sprint("new", killed) // that the kernel has not been told of
		for _, command := range [][]string{{"stat", name}, {"mkdir", name}, {"cat", ".gears/streams/q/k/take"}} {
			run := limited(t, command[0], short.path(command[1]))
			out, err := run.CombinedOutput()
			assert.Error(t, err, "%v: %s", command, out)
			assert.True(t, run.ProcessState.Exited(), "%v ends by itself: %s", command, out)

			run = limited(t, command[0], long.path(command[1]))
			require.NoError(t, run.Start())
			requireInCall(t, run.Process.Pid)
			require.NoError(t, run.Process.Signal(syscall.SIGINT))
			require.Error(t, run.Wait(), "%v", command)
		}
		require.NoError(t, d.cmd.Process.Signal(syscall.SIGCONT))
		for i, m := range []*mounted{short, long} {
			require.Eventually(t, func() bool {
				content, err := os.ReadFile(m.path("file"))
				return err == nil && string(content) == "content"
			}, readyWithin, 10*time.Millisecond)
			other := m.path(fmt.Sprint("after", i, killed))
			require.NoError(t, os.Mkdir(other, 0o755))
			require.NoError(t, os.Remove(other))
			if err := os.Remove(m.path(name)); err != nil {
				assert.ErrorIs(t, err, os.ErrNotExist)
			}
		}
	}
}

// limited is a command that does not run for ever.
func limited(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWithin)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// freeze is SIGSTOP; it returns when no thread of the process runs any more. Until one
// of them has seen the signal the others go on, and answer what they are asked.
func freeze(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	require.Eventually(t, func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		require.NoError(t, err)
		for _, task := range tasks {
			status, err := os.ReadFile(task)
			if err == nil && !strings.Contains(string(status), "State:\tT") {
				return false
			}
		}
		return len(tasks) > 0
	}, readyWithin, 2*time.Millisecond, "a process does not stop")
}

// where says what a process is doing.
func where(pid int) string {
	var all []string
	for _, file := range []string{"cmdline", "wchan", "stat"} {
		at, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			at = []byte(err.Error())
		}
		all = append(all, strings.TrimSpace(strings.ReplaceAll(string(at), "\x00", " ")))
	}
	return strings.Join(all, "; ")
}

// requireInCall waits until a process waits for a FUSE file system. Nobody tells of that.
func requireInCall(t *testing.T, pid int) {
	t.Helper()
	ended := false
	waits := assert.Eventually(t, func() bool {
		at, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
		if err == nil && (strings.Contains(string(at), "fuse") || strings.Contains(string(at), "request_wait_answer")) {
			return true
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		ended = err != nil || strings.Contains(string(status), "State:\tZ")
		return ended
	}, readyWithin, 2*time.Millisecond)
	require.True(t, waits && !ended, "a process does not wait: %s", where(pid))
}

func TestUmountNamesUsers(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	for name, args := range map[string][]string{
		"alive": {"--node", d.addr},
		"dead":  {"--node", d.addr, "--no-supervisor"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := startMount(t, args...)
			require.NoError(t, os.WriteFile(m.path("file"), nil, 0o644))
			sleeper := exec.Command("sleep", "1000")
			sleeper.Dir = m.dir
			file, err := os.Open(m.path("file"))
			require.NoError(t, err)
			defer file.Close()
			reader := exec.Command("sleep", "1000")
			reader.Stdin = file
			for _, cmd := range []*exec.Cmd{sleeper, reader} {
				require.NoError(t, cmd.Start())
				defer cmd.Wait()         //nolint:errcheck // it is killed
				defer cmd.Process.Kill() //nolint:errcheck // it may have ended
			}
			if name == "dead" {
				require.NoError(t, m.cmd.Process.Kill())
				<-m.exited
			}
			out, err := exec.Command(gearsfsPath(), "umount", m.dir).CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), fmt.Sprintf("process %d (sleep): works in %s", sleeper.Process.Pid, m.dir))
			assert.Contains(t, string(out), fmt.Sprintf("process %d (sleep): has open %s/file", reader.Process.Pid, m.dir))
			assert.NotContains(t, leakedMounts(), m.dir)
		})
	}
}

// A frozen mount is detached by force, and who waits for it goes on.
func TestUmountForce(t *testing.T) {
	t.Parallel()
	m := startMount(t, "--data", filepath.Join(dir(t), "data"))
	worker := m.worker()
	freeze(t, worker)
	waiting := limited(t, "stat", m.path("file"))
	require.NoError(t, waiting.Start())
	requireInCall(t, waiting.Process.Pid)
	must(t, "", gearsfsPath(), "umount", "--force", m.dir)
	assert.Error(t, waiting.Wait())
	require.NoError(t, syscall.Kill(worker, syscall.SIGCONT))
	<-m.exited
	assert.Zero(t, m.cmd.ProcessState.ExitCode(), "%s", &m.words)
}

// A mount whose process can't live is given up: detached, with a clear error.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	m := startMount(t, "--data", filepath.Join(dir(t), "data"))
	waiting := limited(t, "cat", m.path(".gears", "streams", "q", "k", "take"))
	require.NoError(t, waiting.Start())
	for last := 0; ; {
		select {
		case <-m.exited:
			assert.Equal(t, 1, m.cmd.ProcessState.ExitCode())
			assert.Contains(t, m.words.String(), "given up")
			assert.Error(t, waiting.Wait(), "nothing hangs")
			assert.NotContains(t, leakedMounts(), m.dir)
			return
		case <-time.After(5 * time.Millisecond): // nobody tells of a new process
		}
		if worker := m.tryWorker(); worker != 0 && worker != last {
			last = worker
			syscall.Kill(worker, syscall.SIGABRT) //nolint:errcheck // it may have ended
		}
	}
}

// kill -9 of the supervisor: the mount goes on, and can be unmounted.
func TestKilledSupervisor(t *testing.T) {
	t.Parallel()
	m := startMount(t, "--data", filepath.Join(dir(t), "data"))
	worker := m.worker()
	require.NoError(t, m.cmd.Process.Kill())
	require.NoError(t, os.WriteFile(m.path("file"), []byte("content"), 0o644))
	got, err := os.ReadFile(m.path("file"))
	require.NoError(t, err)
	assert.Equal(t, "content", string(got))
	must(t, "", gearsfsPath(), "umount", m.dir)
	require.Eventually(t, func() bool { return syscall.Kill(worker, 0) != nil }, readyWithin, 10*time.Millisecond, "its process ends")
	<-m.exited
}
