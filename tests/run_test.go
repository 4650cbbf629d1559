package tests

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A result is what a program did.
type result struct {
	stdout, stderr string
	status         int // 128+n by a signal
}

// A command is a program to run; it is given up after runWithin.
type command struct {
	dir   string
	env   []string // on top of the caller's
	stdin io.Reader
}

// run runs a program to its end.
func (c command) run(t testing.TB, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*runWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin, cmd.Env = c.dir, c.stdin, append(os.Environ(), c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	require.NoError(t, ctx.Err(), "%s %q hangs; it said: %s", name, args, stderr.String())
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		require.NoError(t, err)
	}
	status := cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status = 128 + int(ws.Signal())
	}
	return result{stdout.String(), stderr.String(), status}
}

// must runs a program that must succeed and returns its standard output.
func (c command) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := c.run(t, name, args...)
	require.Zero(t, r.status, "%s %q: %s%s", name, args, r.stderr, lastBytes(r.stdout))
	return r.stdout
}

func lastBytes(s string) string {
	return s[max(0, len(s)-4096):]
}

// must runs a program in dir that must succeed.
func must(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	return command{dir: dir}.must(t, name, args...)
}

// gearsfs runs the program on the node d.
func (d *daemon) gearsfs(args ...string) result {
	d.t.Helper()
	return command{env: []string{"GEARSFS_NODE=" + d.addr}}.run(d.t, gearsfsPath(), args...)
}

func gearsfsPath() string { return filepath.Join(binDir, "gearsfs") }

// requireError checks that a program failed with the status and said why in
// one line that contains all of the words.
func (r result) requireError(t testing.TB, status int, words ...string) {
	t.Helper()
	require.Equal(t, status, r.status, "stderr: %s", r.stderr)
	require.Equal(t, 1, strings.Count(r.stderr, "\n"), "one line on standard error, not %q", r.stderr)
	require.True(t, strings.HasSuffix(r.stderr, "\n"), "%q ends its line", r.stderr)
	for _, word := range words {
		require.Contains(t, strings.ToLower(r.stderr), strings.ToLower(word))
	}
	require.Empty(t, r.stdout)
}
