package tests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A cluster is the nodes of one volume, n1, n2 and so on.
type cluster struct {
	t     testing.TB
	nodes []*daemon
}

// newCluster describes n nodes, of which all but the first join that one. They
// do not run yet.
func newCluster(t testing.TB, n int, args ...string) *cluster {
	t.Helper()
	c := &cluster{t: t}
	for i := range n {
		c.nodes = append(c.nodes, newDaemon(t, append([]string{"--name", fmt.Sprint("n", i+1)}, args...)...))
		if i > 0 {
			c.nodes[i].args = append(c.nodes[i].args, "--join", c.nodes[0].addr)
		}
	}
	return c
}

// startCluster starts n nodes and returns when all of them vote.
func startCluster(t testing.TB, n int, args ...string) *cluster {
	t.Helper()
	c := newCluster(t, n, args...)
	for _, d := range c.nodes {
		d.start()
	}
	return c
}

// startMountedCluster starts n nodes with a mount each.
func startMountedCluster(t testing.TB, n int, args ...string) *cluster {
	t.Helper()
	c := newCluster(t, n, args...)
	for _, d := range c.nodes {
		d.withMount()
		d.start()
	}
	return c
}

// addrs are those of all the nodes.
func (c *cluster) addrs() string {
	list := make([]string, len(c.nodes))
	for i, d := range c.nodes {
		list[i] = d.addr
	}
	return strings.Join(list, ",")
}

// status is what a node says of itself, also where nobody leads.
func (d *daemon) status() (gearsfs.NodeStatus, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	n, err := dgm.DialNode(ctx, d.addr, dgm.RemoteOptions{})
	if err != nil {
		return gearsfs.NodeStatus{}, err
	}
	defer n.Close()
	return n.Status(ctx)
}

// leads returns which of the nodes leads, of those that run; -1 where none says
// so.
func (c *cluster) leads() int {
	statuses := make([]gearsfs.NodeStatus, len(c.nodes))
	var asking sync.WaitGroup
	for i, d := range c.nodes {
		if d.running() {
			asking.Go(func() {
				if s, err := d.status(); err == nil {
					statuses[i] = s
				}
			})
		}
	}
	asking.Wait()
	leader, term := -1, uint64(0)
	for i, s := range statuses {
		if s.Role == "leader" && s.Term >= term {
			leader, term = i, s.Term
		}
	}
	return leader
}

// leader waits until a node leads.
func (c *cluster) leader() int {
	c.t.Helper()
	leader := -1
	require.Eventually(c.t, func() bool {
		leader = c.leads()
		return leader >= 0
	}, runWithin, 20*time.Millisecond, "a node leads")
	return leader
}

// A member is a line of `gearsfs nodes -o json`.
type member struct {
	Node, Role, Address, Trouble string
	Reachable                    bool
	Lag                          uint64
}

// members are the volume's nodes by name, as d sees them.
func (d *daemon) members() map[string]member {
	d.t.Helper()
	r := d.gearsfs("nodes", "-o", "json")
	require.Zero(d.t, r.status, r.stderr)
	all := make(map[string]member)
	for line := range strings.Lines(r.stdout) {
		var m member
		require.NoError(d.t, json.Unmarshal([]byte(line), &m), line)
		all[m.Node] = m
	}
	return all
}

// verify has the replicas compared, as soon as all of them can be reached, which
// after a cut the kernel tries for some connections only after seconds, and nobody
// else has them compared.
func (c *cluster) verify() {
	c.t.Helper()
	for began := time.Now(); ; {
		r := c.nodes[0].gearsfs("nodes", "verify", "--node", c.addrs())
		if r.status == 0 {
			return
		}
		again := strings.Contains(r.stderr, "not compared") || strings.Contains(r.stderr, "being compared already")
		if !again || time.Since(began) > runWithin {
			require.Fail(c.t, "the replicas are not known to be the same", r.stderr)
		}
	}
}

// A node that was alone with its data becomes the first of three without
// stopping; each serves all of it. Leading and membership can be moved.
func TestClusterForms(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.nodes[0].start()
	first := c.nodes[0].dial()
	put := func(m dgm.Manager, text string) {
		_, err := m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte(text)}}})
		require.NoError(t, err)
	}
	put(first, "alone")
	require.NotContains(t, c.nodes[0].gearsfs("status").stdout, "warning")

	c.nodes[1].start()
	require.Contains(t, c.nodes[1].output.String(), "catching up")
	for _, d := range c.nodes[:2] {
		require.Regexp(t, "warning .*two", d.gearsfs("status").stdout, "neither of two may fail")
	}
	c.nodes[2].start()
	for _, d := range c.nodes {
		require.NotContains(t, d.gearsfs("status").stdout, "warning")
		members := d.members()
		require.Len(t, members, 3)
		require.Equal(t, "leader", members["n1"].Role)
		for _, name := range []string{"n2", "n3"} {
			require.Equal(t, "voter", members[name].Role)
			require.True(t, members[name].Reachable, members[name].Trouble)
		}
	}
	put(first, "still there")
	put(c.nodes[2].dial(), "by another")
	taken := c.nodes[1].gearsfs("take", ":/q", "k", "-n", "3")
	require.Zero(t, taken.status, taken.stderr)
	require.Equal(t, "alone\nstill there\nby another\n", taken.stdout)
	c.verify()

	c.nodes[0].gearsfs("nodes", "remove", "n1").requireError(t, 1, "transfer")
	c.nodes[0].gearsfs("nodes", "remove", "n4").requireError(t, 1, "n4", "gearsfs nodes")
	c.nodes[0].gearsfs("nodes", "transfer", "n4").requireError(t, 1, "n4", "gearsfs nodes")
	require.Zero(t, c.nodes[2].gearsfs("nodes", "transfer", "n2").status)
	require.Equal(t, 1, c.leader())
	r := c.nodes[1].gearsfs("nodes", "remove", "n1")
	require.Zero(t, r.status, r.stderr)
	require.Len(t, c.nodes[2].members(), 2)
	c.nodes[0].stop()
	put(c.nodes[2].dial(), "without the first")

	// What was removed does not come back; new data may have its name.
	c.nodes[0].args = append(c.nodes[0].args, "--join", c.nodes[1].addr+","+c.nodes[2].addr)
	require.ErrorContains(t, c.nodes[0].tryStart(), "removed")
	again := newDaemon(t, "--name", "n1", "--join", c.nodes[1].addr+","+c.nodes[2].addr)
	again.start()
	require.Len(t, again.members(), 3)
	require.Equal(t, "without the first\n", again.gearsfs("take", ":/q", "k").stdout)
	again.stop()
}

// A node that may not join is refused with a reason, and the others do not
// notice.
func TestClusterRefuses(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	last := c.nodes[2]
	refused := func(d *daemon, words ...string) {
		t.Helper()
		args := append([]string{"--data", d.data, "--listen", d.addr}, d.args...)
		command{}.run(t, filepath.Join(binDir, "gearsfsd"), args...).requireError(t, 1, words...)
	}
	joining := []string{"--join", c.addrs()}

	refused(newDaemon(t, append(joining, "--name", "n2")...), "n2", "name")

	stranger := newDaemon(t, "--name", "stranger")
	stranger.start()
	require.Zero(t, stranger.gearsfs("put", ":/mine", "k", "x").status)
	stranger.stop()
	stranger.args = append(stranger.args, joining...)
	refused(stranger, "volume")

	last.stop()
	wiped := newDaemon(t, last.args...)
	refused(wiped, "n3", "remove")
	kept := newDaemon(t, last.args...)
	must(t, "", "cp", "-a", last.data, kept.data)
	must(t, kept.data, "rm", "-r", "log")
	refused(kept, kept.data)

	old := newDaemon(t, joining...)
	must(t, "", "cp", "-a", last.data, old.data)
	must(t, old.data, "sed", "-i", "s/[0-9]/0/g", "FORMAT")
	refused(old, old.data)

	nobody := newDaemon(t, "--join", "unix:"+filepath.Join(dir(t), "none"))
	refused(nobody, "nobody listens")

	last.start()
	require.Len(t, last.members(), 3)
	c.verify()
}

// cluster.sh runs three mounted nodes, ^C ends them, and run again it goes on
// with the data.
func TestClusterScript(t *testing.T) {
	t.Parallel()
	at := dir(t)
	mount := func(n int) string { return filepath.Join(at, fmt.Sprint("m", n)) }
	t.Cleanup(func() {
		for n := range 4 {
			detach(t, mount(n))
		}
	})
	for round := range 2 {
		script := exec.Command("../cluster.sh")
		script.Env = append(os.Environ(), "BIN="+binDir, "CLUSTER="+filepath.Join(at, "c"), "MOUNTPOINT="+filepath.Join(at, "m"))
		script.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
		var stderr bytes.Buffer
		script.Stderr = &stderr
		stdout, err := script.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, script.Start())
		ready := false
		for lines := bufio.NewScanner(stdout); !ready && lines.Scan(); {
			ready = strings.HasPrefix(lines.Text(), "To try")
		}
		require.True(t, ready, stderr.String())
		require.NoError(t, appendTo(filepath.Join(mount(1), "jobs"), "job\n"))
		require.Equal(t, strings.Repeat("job\n", round+1), must(t, "", "cat", filepath.Join(mount(3), "jobs")))
		require.NoError(t, syscall.Kill(-script.Process.Pid, syscall.SIGINT)) // as a terminal does
		_, err = io.Copy(io.Discard, stdout)
		require.NoError(t, err)
		require.NoError(t, script.Wait(), stderr.String())
		require.NotContains(t, strings.Join(leakedMounts(), " "), at)
	}
}
