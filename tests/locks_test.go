package tests

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// openIn opens a file by a node's mount.
func (d *daemon) openIn(name string) *os.File {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.mount, name), os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(d.t, err)
	d.t.Cleanup(func() { f.Close() }) // its mount may be dead
	return f
}

// A lock that a process has by one node's mount excludes those by the others', also
// after the leader was killed; and it ends when its own node is killed.
func TestLocksOverNodes(t *testing.T) {
	c := startMountedCluster(t, 3)
	leader := c.leader()
	here, there := c.nodes[(leader+1)%3], c.nodes[(leader+2)%3]
	holder, waiter := here.openIn("f"), there.openIn("f")
	require.NoError(t, unix.Flock(int(holder.Fd()), unix.LOCK_EX))
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	require.NoError(t, unix.FcntlFlock(holder.Fd(), unix.F_SETLK, &whole))
	require.ErrorIs(t, unix.Flock(int(waiter.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)

	has := make(chan error, 1)
	go func() { has <- unix.Flock(int(waiter.Fd()), unix.LOCK_EX) }()
	m := dialAt(t, c.addrs())
	waits := func() bool {
		list, err := m.Waits(t.Context())
		return err == nil && len(list) == 1 && list[0].Op == "lock"
	}
	require.Eventually(t, waits, stopWithin, 10*time.Millisecond)
	c.nodes[leader].kill()
	require.Eventually(t, waits, stopWithin, 10*time.Millisecond, "it goes on waiting at the next leader")
	another := there.openIn("f")
	require.ErrorIs(t, unix.Flock(int(another.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	require.ErrorIs(t, unix.FcntlFlock(another.Fd(), unix.F_SETLK, &whole), unix.EAGAIN)
	select {
	case err := <-has:
		require.Fail(t, "two have the lock", "%v", err)
	default:
	}

	detach(t, c.nodes[leader].mount)
	c.nodes[leader].start()
	here.kill()
	select {
	case err := <-has:
		require.NoError(t, err)
	case <-time.After(runWithin):
		require.Fail(t, "the lock of a killed node lasts")
	}
	require.NoError(t, unix.FcntlFlock(another.Fd(), unix.F_SETLKW, &whole))
}
