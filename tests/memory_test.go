package tests

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A stream in memory keeps its settings over kill -9 of the daemon, and nothing
// else. Who waits there waits on, at a stream that is empty, and what was leased
// is gone.
func TestMemoryStreamsAfterKill(t *testing.T) {
	t.Parallel()
	d, temp := startDaemon(t), dir(t)
	run := func(args ...string) string {
		t.Helper()
		return command{env: []string{"GEARSFS_NODE=" + d.addr}}.must(t, gearsfsPath(), args...)
	}
	run("put", ":/q", "disk", "kept")
	run("set", ":/q", "k", "--store", "memory", "--records", "2", "--full", "wait")
	run("set", ":/q", "empty", "--store", "memory")
	run("put", ":/q", "k", "-l")
	run("put", ":/q", "k", "1")
	run("put", ":/q", "k", "2")
	var lent struct{ Receipt string }
	require.NoError(t, json.Unmarshal([]byte(run("take", ":/q", "k", "--lease", "1h", "-o", "json")), &lent))
	settings := run("set", ":/q", "k")
	require.Contains(t, settings, "memory")
	putting := startJob(t, d, temp, gearsfsPath(), "put", ":/q", "k", "3")
	taking := startJob(t, d, temp, gearsfsPath(), "take", ":/q", "empty,disk2")
	acked := startJob(t, d, temp, gearsfsPath(), "put", ":/q", "empty2", "x", "--until-acked")
	require.Eventually(t, func() bool { return strings.Count(run("waits", "-o", "json"), `"session"`) == 3 }, runWithin, 10*time.Millisecond)

	d.kill()
	d.start()

	require.Zero(t, putting.wait(), "there is room now: %s", putting.stderr.String())
	require.Equal(t, settings, run("set", ":/q", "k"))
	require.Equal(t, "3\n", run("take", ":/q", "k", "-n", "all"))
	d.gearsfs("take", ":/q", "k", "--no-wait").requireError(t, 3, "empty")
	d.gearsfs("ack", ":/q", "k", lent.Receipt).requireError(t, 1, "gone")
	require.Equal(t, "kept\n", run("take", ":/q", "disk"))
	require.True(t, taking.running(), taking.stderr.String())
	run("put", ":/q", "empty", "new")
	require.Zero(t, taking.wait(), taking.stderr.String())
	require.Equal(t, "new\n", taking.stdout.String())
	run("take", ":/q", "empty2")
	require.Zero(t, acked.wait(), acked.stderr.String())
}
