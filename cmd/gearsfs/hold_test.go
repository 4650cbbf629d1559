package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHold(t *testing.T) {
	addr := startNode(t)
	runSteps(t, addr, []step{
		{line: "hold :/l lock -- true"},
		{line: "hold :/l lock --lease 1m -- false", status: 1},
		{line: "hold :/l lock --lease 999ms -- true", status: 2, errs: "at least 1s"},
		{line: "hold :/l lock -- /none/such", status: 127, errs: "COMMAND /none/such"},
		{line: "hold :/l lock -- /etc/passwd", status: 126, errs: "COMMAND /etc/passwd"},
		{line: "hold :/l lock -n 2 -- true", status: 1, errs: "it has 1 permit, not 2"},
		{line: "hold :/none/l lock -- true", status: 1, errs: "/none/l: no such file"},
		{line: "hold :/l two -n 2 -- true"},
	})
	got := cli(t, addr, nil, "hold", ":/l", "lock", "--", "sh", "-c", "kill -9 $$")
	assert.Equal(t, outcome{status: 137}, got)
	got = cli(t, addr, strings.NewReader("in\n"), "hold", ":/l", "lock", "--", "sh", "-c", "cat; echo err >&2; exit 7")
	assert.Equal(t, outcome{7, "in\n", "err\n"}, got)

	// Fences rise with every grant, whoever gives.
	var last uint64
	for _, key := range []string{"lock", "lock", "other", "lock"} {
		got := cli(t, addr, nil, "hold", ":/l", key, "--", "sh", "-c", "echo $GEARSFS_FENCE")
		fence, err := strconv.ParseUint(strings.TrimSpace(got.out), 10, 64)
		require.NoError(t, err, got.errs)
		assert.Greater(t, fence, last)
		last = fence
		runSteps(t, addr, []step{{line: "clear :/l lock"}})
	}
}

// While one holds the permit others wait, or don't; a signal is the command's.
func TestHoldIsALock(t *testing.T) {
	addr := startNode(t)
	dir := t.TempDir()
	a, ended := background(t, addr, "hold", ":/l", "lock", "--", "sh", "-c", `trap "exit 9" INT; : > `+dir+`/began; while :; do sleep 0.01; done`)
	waitFile(t, dir+"/began")
	runSteps(t, addr, []step{
		{line: "hold :/l lock --no-wait -- true", status: 3, errs: "all permits are held"},
		{line: "hold :/l lock --wait 50ms -- true", status: 3, errs: "no permit came free within --wait"},
		{line: "hold :/l other -- true"},
	})
	_, second := background(t, addr, "hold", ":/l", "lock", "--", "sh", "-c", "echo got it")
	require.True(t, interrupt(t, a))
	assert.Equal(t, 9, (<-ended).status)
	assert.Equal(t, outcome{0, "got it\n", ""}, <-second)
}

// Two of three hold the two permits of a semaphore.
func TestHoldIsASemaphore(t *testing.T) {
	addr := startNode(t)
	dir := t.TempDir()
	script := `: > ` + dir + `/$1; until [ -e ` + dir + `/go ]; do sleep 0.01; done`
	_, one := background(t, addr, "hold", ":/l", "two", "-n", "2", "--", "sh", "-c", script, "sh", "1")
	_, two := background(t, addr, "hold", ":/l", "two", "-n", "2", "--", "sh", "-c", script, "sh", "2")
	waitFile(t, dir+"/1")
	waitFile(t, dir+"/2")
	runSteps(t, addr, []step{{line: "hold :/l two -n 2 --no-wait -- true", status: 3, errs: "held"}})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	assert.Equal(t, outcome{}, <-one)
	assert.Equal(t, outcome{}, <-two)
	runSteps(t, addr, []step{{line: "hold :/l two -n 2 --no-wait -- true"}})
}

// A permit that is lost takes its command with it.
func TestHoldLosesItsPermit(t *testing.T) {
	addr := startNode(t)
	dir := t.TempDir()
	_, ended := background(t, addr, "hold", ":/l", "lock", "--", "sh", "-c", `: > `+dir+`/began; sleep 1000 & wait`)
	waitFile(t, dir+"/began")
	runSteps(t, addr, []step{
		{line: "clear :/l lock"},
		{line: "hold :/l lock --no-wait -- true"},
	})
	got := <-ended
	assert.Equal(t, exitSignal+int(syscall.SIGKILL), got.status)
	assert.Contains(t, got.errs, "the permit was lost")
}
