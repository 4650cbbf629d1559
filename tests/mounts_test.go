package tests

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// mountAgain mounts the daemon's volume once more, by a process of its own that
// lives as long as the test, and returns where.
func (d *daemon) mountAgain(t testing.TB, options ...string) string {
	t.Helper()
	at := filepath.Join(dir(t), "m")
	require.NoError(t, os.Mkdir(at, 0o755))
	cmd := exec.Command(gearsfsPath(), append(append([]string{"mount", "--node", d.addr}, options...), at)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	said, words, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = words, words
	require.NoError(t, cmd.Start())
	require.NoError(t, words.Close())
	var output tail
	mounted, exited := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(exited)
		defer said.Close()
		for lines := bufio.NewScanner(said); lines.Scan(); {
			output.add(lines.Text())
			if strings.HasPrefix(lines.Text(), "mounted on ") {
				close(mounted)
			}
		}
		_ = cmd.Wait() // its status is in ProcessState
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Logf("end the mount on %s: %v", at, err)
		}
		select {
		case <-exited:
		case <-time.After(stopWithin):
			t.Errorf("the mount on %s did not end within %v:\n%s", at, stopWithin, &output)
			require.NoError(t, cmd.Process.Kill())
			<-exited
		}
		detach(t, at)
	})
	select {
	case <-mounted:
	case <-exited:
		require.Fail(t, "the mount has ended", "%s", &output)
	case <-time.After(readyWithin):
		require.Fail(t, "nothing is mounted", "%s", &output)
	}
	return at
}
