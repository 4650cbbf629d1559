package dgm_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// node is one node of a volume of several, in this process, behind
// a bridge: when that is cut, nobody reaches the node, though it reaches
// the others.
type node struct {
	t         *testing.T
	name, dir string
	way       *bridge
	log       *slog.Logger
	ahead     atomic.Int64 // by how much its clock is wrong
	vol       *dgm.Volume
	stop      context.CancelFunc
	served    sync.WaitGroup
}

func (n *node) addr() string { return n.way.addr() }

// start starts a node on its data, which joins the volume of another where the
// data are new.
func (n *node) start(join string) error {
	data, err := persist.Open(n.dir, persist.Options{Create: true, Name: n.name})
	if err != nil {
		return err
	}
	if join != "" {
		if err := dgm.Join(n.t.Context(), join, dgm.JoinConfig{Data: data, Addrs: n.addr(), Log: n.log}); err != nil {
			data.Close()
			return err
		}
	}
	n.vol, err = dgm.OpenVolume(n.t.Context(), dgm.VolumeConfig{
		Data: data, Root: gearsfs.Root, Addrs: n.addr(), Log: n.log, Insecure: true,
		Clock: func() time.Time { return time.Now().Add(time.Duration(n.ahead.Load())) },
		Fatal: func(err error) { n.t.Errorf("%s: fatal: %v", n.name, err) },
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	n.way.lead(l.Addr().String())
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	vol := n.vol
	n.served.Go(func() {
		if err := vol.Serve(ctx, l, nil); err != nil {
			n.t.Errorf("%s: serve: %v", n.name, err)
		}
	})
	return nil
}

// close stops a node in peace.
func (n *node) close() {
	if n.vol == nil {
		return
	}
	if err := n.vol.Close(); err != nil {
		n.t.Errorf("%s: close: %v", n.name, err)
	}
	n.stop()
	n.served.Wait()
	n.vol = nil
}

func (n *node) status() gearsfs.NodeStatus {
	l, err := n.vol.Local(client)
	require.NoError(n.t, err)
	defer l.Close()
	s, err := l.Status(n.t.Context())
	require.NoError(n.t, err)
	return s
}

// nodes are those of one volume.
type nodes struct {
	t   *testing.T
	dir string
	all []*node
}

// newNodes makes a volume of several nodes that all have a vote.
func newNodes(t *testing.T, names ...string) *nodes {
	t.Helper()
	c := &nodes{t: t, dir: t.TempDir()} // before the cleanup, so that it is removed after it
	t.Cleanup(func() {
		for _, n := range c.all {
			n.close()
		}
	})
	for i, name := range names {
		n := c.add(name)
		join := ""
		if i > 0 {
			join = c.all[0].addr()
		}
		require.NoError(t, n.start(join))
		require.NoError(t, n.vol.WaitVoter(t.Context(), nil))
	}
	return c
}

func (c *nodes) add(name string) *node {
	dir := filepath.Join(c.dir, fmt.Sprint(len(c.all)))
	n := &node{t: c.t, name: name, dir: dir, way: bridgeOn(c.t, listenTCP(c.t), ""), log: slog.New(slog.DiscardHandler)}
	c.all = append(c.all, n)
	return n
}

func (c *nodes) addrs() string {
	var addrs []string
	for _, n := range c.all {
		addrs = append(addrs, n.addr())
	}
	return strings.Join(addrs, ",")
}

// leader waits until one of the nodes serves.
func (c *nodes) leader() *node {
	c.t.Helper()
	var leads *node
	require.Eventually(c.t, func() bool {
		for _, n := range c.all {
			if n.vol != nil && n.vol.Serves() {
				leads = n
			}
		}
		return leads != nil
	}, 20*time.Second, time.Millisecond)
	return leads
}

// follower is a node that does not lead.
func (c *nodes) follower() *node {
	leads := c.leader()
	for _, n := range c.all {
		if n != leads && n.vol != nil {
			return n
		}
	}
	c.t.Fatal("no follower")
	return nil
}

// changeLeader makes another node lead.
func (c *nodes) changeLeader() {
	c.t.Helper()
	m := local(c.t, c.leader().vol)
	require.NoError(c.t, m.TransferLeader(c.t.Context(), c.follower().name))
}

func TestNodes(t *testing.T) {
	c := newNodes(t, "a", "b")
	require.Eventually(t, func() bool {
		return strings.Contains(fmt.Sprint(c.leader().status().Warnings), "add a third")
	}, 10*time.Second, time.Millisecond)
	d := c.add("c")
	require.NoError(t, d.start(c.all[1].addr()), "asking a follower is as good")
	require.NoError(t, d.vol.WaitVoter(t.Context(), nil))
	for _, n := range c.all {
		require.Eventually(t, func() bool { return n.status().Voters == 3 }, 10*time.Second, time.Millisecond)
		infos, err := local(t, n.vol).Nodes(t.Context())
		require.NoError(t, err)
		require.Len(t, infos, 3)
		leaders := 0
		for _, info := range infos {
			require.True(t, info.Reachable, "%s sees %+v", n.name, info)
			if info.Role == "leader" {
				leaders++
			} else {
				require.Equal(t, "voter", info.Role)
			}
		}
		require.Equal(t, 1, leaders)
		s := n.status()
		require.Equal(t, c.leader().name, s.Leader)
		require.Empty(t, s.Warnings, n.name)
	}

	// One is down.
	down := c.follower()
	down.close()
	infos, err := local(t, c.leader().vol).Nodes(t.Context())
	require.NoError(t, err)
	for _, info := range infos {
		require.Equal(t, info.Name != down.name, info.Reachable, "%+v", info)
		require.Equal(t, info.Name != down.name, info.Trouble == "", "%+v", info)
	}
}

func TestWhoMayNotJoin(t *testing.T) {
	c := newNodes(t, "a", "b")
	twin := c.add("b")
	err := twin.start(c.all[0].addr())
	require.ErrorIs(t, err, gearsfs.ErrExists)
	require.ErrorContains(t, err, "gearsfs nodes remove b")

	other := newNodes(t, "x")
	other.all[0].close()
	err = other.all[0].start(c.all[0].addr())
	require.ErrorIs(t, err, gearsfs.ErrForeign)
	require.NoError(t, other.all[0].start(""), "its own volume is as it was")
	require.Equal(t, "x", other.all[0].status().Leader)

	// Who was removed stays so.
	third := c.add("c")
	require.NoError(t, third.start(c.all[0].addr()))
	require.NoError(t, third.vol.WaitVoter(t.Context(), nil))
	m := local(t, c.leader().vol)
	require.ErrorIs(t, m.RemoveNode(t.Context(), "nobody"), gearsfs.ErrNotFound)
	require.ErrorIs(t, m.RemoveNode(t.Context(), c.leader().name), gearsfs.ErrBusy)
	require.NoError(t, m.RemoveNode(t.Context(), "c"))
	infos, err := m.Nodes(t.Context())
	require.NoError(t, err)
	require.Len(t, infos, 2)

	// Its name is free for a node with new data, not for the old.
	third.close()
	require.ErrorIs(t, third.start(c.all[0].addr()), gearsfs.ErrNotMember)
	again := c.add("c")
	require.NoError(t, again.start(c.all[0].addr()))
	require.NoError(t, again.vol.WaitVoter(t.Context(), nil))
}

// TestOpenOfWhatWasMade: nobody else can know of a file that the same request has
// made, so its open asks no majority.
func TestOpenOfWhatWasMade(t *testing.T) {
	c := newNodes(t, "a", "b", "c")
	for t.Context().Err() == nil {
		leads := c.leader()
		m, err := leads.vol.Local(client)
		require.NoError(t, err)
		made, err := m.Create(t.Context(), gearsfs.RootIno, rand.Text(), dgm.Make{Mode: unix.S_IFREG | 0o644})
		require.NoError(t, err) // the state knows the session from now on
		atOnce, err := leads.vol.Tenure().OpensAtOnce(m.Session(), made.Ino, true)
		require.NoError(t, m.Close())
		if err == nil {
			require.True(t, atOnce)
			return
		}
		t.Log("another leads:", err)
	}
}

// TestMadeElsewhere: whoever was told that a file was made or removed may have
// another node's client look for it.
func TestMadeElsewhere(t *testing.T) {
	t.Parallel()
	c := newNodes(t, "a", "b", "c")
	here, there := local(t, c.leader().vol), local(t, c.follower().vol)
	for i := range 500 {
		name := fmt.Sprint("f", i)
		made, err := here.Make(t.Context(), gearsfs.RootIno, name, dgm.Make{Mode: unix.S_IFREG | 0o644})
		require.NoError(t, err)
		found, err := there.Lookup(t.Context(), gearsfs.RootIno, name)
		require.NoError(t, err)
		require.Equal(t, made.Ino, found.Ino)
		require.NoError(t, here.Unlink(t.Context(), gearsfs.RootIno, name))
		list, err := there.ReadDir(t.Context(), gearsfs.RootIno, "", 10)
		require.NoError(t, err)
		require.Empty(t, list)
	}
	_, err := there.Lookup(t.Context(), gearsfs.RootIno, "none")
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
}
