package tests

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A world is what is broken. Nodes count from 0; the stations of the network,
// of which 0 is where the clients are, as network has them.
type world struct {
	down, stopped, full [3]bool
	cut                 [4][4]bool // what the one sends to the other is lost
}

// majority reports whether two nodes run that hear each other.
func (w *world) majority() bool {
	for i := range 3 {
		for j := range i {
			if w.works(i) && w.works(j) && !w.cut[i+1][j+1] && !w.cut[j+1][i+1] {
				return true
			}
		}
	}
	return false
}

func (w *world) works(i int) bool { return !w.down[i] && !w.stopped[i] && !w.full[i] }

// whole reports whether nothing is broken.
func (w *world) whole() bool { return *w == world{} }

// A fault breaks something and returns what, and how to mend it; nil where that
// can't be, or would spoil what is broken already.
type fault struct {
	name  string
	begin func(c *chaos) (what string, heal func())
}

var faults = []fault{
	{"kill -9", (*chaos).killOne},
	{"kill -9", (*chaos).killOne},
	{"restart of all", (*chaos).restartAll},
	{"SIGSTOP", (*chaos).stopOne},
	{"SIGSTOP", (*chaos).stopOne},
	{"minority cut off", (*chaos).isolate},
	{"minority cut off", (*chaos).isolate},
	{"majority cut off", (*chaos).scatter},
	{"one way", (*chaos).oneWay},
	{"one way", (*chaos).oneWay},
	{"bridge", (*chaos).bridge},
	{"reconnects", (*chaos).flap},
	{"clients cut off", (*chaos).cutClients},
	{"disk full", (*chaos).fill},
	{"clock", (*chaos).step},
	{"clock", (*chaos).step},
	{"transfer", (*chaos).transfer},
	{"leap", (*chaos).leap},
	{"leap", (*chaos).leap},
}

// victim draws a node, more often the one that leads.
func (c *chaos) victim() int {
	i := c.rng.IntN(len(c.nodes))
	if c.rng.IntN(2) == 0 {
		if leader := c.leads(); leader >= 0 {
			return leader
		}
	}
	return i
}

func (c *chaos) kill(i int) {
	c.world.down[i] = true
	c.nodes[i].kill()
}

func (c *chaos) restart(i int) {
	c.t.Helper()
	c.nodes[i].start()
	c.world.down[i] = false
}

func (c *chaos) killOne() (string, func()) {
	i := c.victim()
	if c.world.down[i] || c.world.stopped[i] {
		return "", nil
	}
	c.kill(i)
	return fmt.Sprintf("n%d", i+1), func() { c.restart(i) }
}

// restartAll ends all nodes at once, by kill -9 or by SIGTERM.
func (c *chaos) restartAll() (string, func()) {
	if !c.world.whole() {
		return "", nil
	}
	gently := c.rng.IntN(2) == 0
	var ending sync.WaitGroup
	for i, d := range c.nodes {
		c.world.down[i] = true
		ending.Go(func() {
			if gently {
				d.stop()
			} else {
				d.cmd.Process.Kill() //nolint:errcheck // then it does not end
				<-d.exited
			}
		})
	}
	ending.Wait()
	return map[bool]string{true: "SIGTERM", false: "kill -9"}[gently], func() {
		var starting sync.WaitGroup
		errs := make([]error, len(c.nodes))
		for i, d := range c.nodes {
			starting.Go(func() { errs[i] = d.tryStart() })
		}
		starting.Wait()
		for i, err := range errs {
			require.NoError(c.t, err)
			c.world.down[i] = false
		}
	}
}

func (c *chaos) stopOne() (string, func()) {
	i := c.victim()
	if c.world.down[i] || c.world.stopped[i] {
		return "", nil
	}
	require.NoError(c.t, c.nodes[i].cmd.Process.Signal(syscall.SIGSTOP))
	c.world.stopped[i] = true
	return fmt.Sprintf("n%d", i+1), func() {
		require.NoError(c.t, c.nodes[i].cmd.Process.Signal(syscall.SIGCONT))
		c.world.stopped[i] = false
	}
}

// lose cuts pairs of stations, and returns what joins them again.
func (c *chaos) lose(pairs ...[2]int) func() {
	set := func(off bool) {
		for _, p := range pairs {
			require.NoError(c.t, c.net.cut(p[0], p[1], off))
			c.world.cut[p[0]][p[1]] = off
		}
	}
	set(true)
	return func() { set(false) }
}

func (c *chaos) cutAlready() bool { return c.world.cut != [4][4]bool{} }

// isolate cuts one node off from the others, and sometimes from the clients.
func (c *chaos) isolate() (string, func()) {
	if c.cutAlready() {
		return "", nil
	}
	i := c.victim() + 1
	var pairs [][2]int
	for j := range 4 {
		if j != i && (j > 0 || c.rng.IntN(2) == 0) {
			pairs = append(pairs, [2]int{i, j}, [2]int{j, i})
		}
	}
	return fmt.Sprintf("n%d, %v", i, pairs), c.lose(pairs...)
}

// scatter cuts each node off from each.
func (c *chaos) scatter() (string, func()) {
	if c.cutAlready() {
		return "", nil
	}
	return "no two nodes can talk", c.lose([][2]int{{1, 2}, {2, 1}, {1, 3}, {3, 1}, {2, 3}, {3, 2}}...)
}

// oneWay loses what one node sends, or what is sent to it, or what it sends to
// one other.
func (c *chaos) oneWay() (string, func()) {
	if c.cutAlready() {
		return "", nil
	}
	i := c.victim() + 1
	j, k := i%3+1, (i+1)%3+1
	switch c.rng.IntN(3) {
	case 0:
		return fmt.Sprintf("from n%d", i), c.lose([2]int{i, j}, [2]int{i, k})
	case 1:
		return fmt.Sprintf("to n%d", i), c.lose([2]int{j, i}, [2]int{k, i})
	}
	return fmt.Sprintf("from n%d to n%d", i, j), c.lose([2]int{i, j})
}

// bridge leaves one node that talks with the two others, which don't hear each
// other.
func (c *chaos) bridge() (string, func()) {
	if c.cutAlready() {
		return "", nil
	}
	i := c.victim() + 1
	j, k := i%3+1, (i+1)%3+1
	return fmt.Sprintf("n%d", i), c.lose([2]int{j, k}, [2]int{k, j})
}

// flap cuts one node off and joins it again, several times.
func (c *chaos) flap() (string, func()) {
	if c.cutAlready() {
		return "", nil
	}
	i := c.victim() + 1
	j, k := i%3+1, (i+1)%3+1
	times := 3 + c.rng.IntN(8)
	for range times {
		join := c.lose([2]int{i, j}, [2]int{j, i}, [2]int{i, k}, [2]int{k, i}, [2]int{0, i}, [2]int{i, 0})
		pause(c.t.Context(), time.Duration(20+c.rng.IntN(300))*time.Millisecond)
		join()
		pause(c.t.Context(), time.Duration(20+c.rng.IntN(300))*time.Millisecond)
	}
	return fmt.Sprintf("n%d %d times", i, times), func() {}
}

// cutClients loses what passes between the clients and one node, or all.
func (c *chaos) cutClients() (string, func()) {
	if c.cutAlready() {
		return "", nil
	}
	i := c.victim() + 1
	switch c.rng.IntN(3) {
	case 0:
		return fmt.Sprintf("from n%d, one way", i), c.lose([2]int{0, i})
	case 1:
		return fmt.Sprintf("from n%d", i), c.lose([2]int{0, i}, [2]int{i, 0})
	}
	return "from all", c.lose([2]int{0, 1}, [2]int{0, 2}, [2]int{0, 3})
}

// diskBytes is the size of a node's disk.
const diskBytes = 1 << 30

// onSmallDisk gives a node a disk of its own.
func (c *chaos) onSmallDisk(d *daemon) {
	c.t.Helper()
	require.NoError(c.t, os.Mkdir(d.data, 0o755))
	must(c.t, "", "mount", "-t", "tmpfs", "-o", fmt.Sprint("size=", diskBytes), "tmpfs", d.data)
	c.t.Cleanup(func() {
		if d.running() {
			d.cmd.Process.Signal(syscall.SIGCONT) //nolint:errcheck // it runs
			d.stop()
		}
		must(c.t, "", "umount", d.data)
	})
}

// fill leaves a node, or each, little room on its disk or next to none. The
// node may end for that; whoever makes room starts it again.
func (c *chaos) fill() (string, func()) {
	if c.world.full != [3]bool{} {
		return "", nil
	}
	left := int64(40 << 20) // below what a node keeps in reserve
	if c.rng.IntN(3) == 0 {
		left = 128 << 10
	}
	victims := []int{c.victim()}
	if c.rng.IntN(4) == 0 {
		victims = []int{0, 1, 2}
	}
	c.setFull(true)
	for _, i := range victims {
		c.world.full[i] = true
		c.resize(i, left)
	}
	return fmt.Sprintf("%v, %d KiB left", victims, left>>10), func() {
		for _, i := range victims {
			c.resize(i, -1)
			c.world.full[i] = false
			if !c.nodes[i].running() && !c.world.down[i] {
				c.t.Logf("n%d had ended: %v", i+1, c.nodes[i].cmd.ProcessState)
				c.counts["ended for a full disk"]++
				c.restart(i)
			}
		}
		c.setFull(false)
	}
}

// resize leaves so much room on a node's disk, or as much as there was.
func (c *chaos) resize(i int, left int64) {
	c.t.Helper()
	for {
		total := int64(diskBytes)
		if left >= 0 {
			var s unix.Statfs_t
			require.NoError(c.t, unix.Statfs(c.nodes[i].data, &s))
			total = int64(s.Blocks-s.Bfree)*s.Bsize + left
		}
		err := unix.Mount("", c.nodes[i].data, "", unix.MS_REMOUNT, fmt.Sprint("size=", total))
		if left >= 0 && errors.Is(err, unix.EINVAL) {
			continue // more than that was written meanwhile
		}
		require.NoError(c.t, err)
		return
	}
}

// clockOf gives a node a clock that can be set wrong, by what is in a file.
func (c *chaos) clockOf(d *daemon) *os.File {
	c.t.Helper()
	f, err := os.Create(filepath.Join(filepath.Dir(d.data), "clock"))
	require.NoError(c.t, err)
	c.t.Cleanup(func() { f.Close() })
	require.NoError(c.t, f.Truncate(8))
	d.env = append(d.env, "GEARSFSD_FAULTCLOCK="+f.Name())
	return f
}

// step sets the clock of one node, or of each, an hour forward or back, and in
// the end right again.
func (c *chaos) step() (string, func()) {
	hours := 1 - 2*c.rng.IntN(2)
	nodes := []int{c.victim()}
	if c.rng.IntN(4) == 0 {
		nodes = []int{0, 1, 2}
	}
	c.setClocks(time.Duration(hours)*time.Hour, nodes...)
	return fmt.Sprintf("%v by %+d h", nodes, hours), func() { c.setClocks(0, nodes...) }
}

// setClocks makes the clocks of nodes wrong by as much.
func (c *chaos) setClocks(by time.Duration, nodes ...int) {
	for _, i := range nodes {
		_, err := c.clocks[i].WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(by)), 0)
		require.NoError(c.t, err)
	}
}

// transfer has another node lead.
func (c *chaos) transfer() (string, func()) {
	leader, to := c.heir()
	if to < 0 {
		return "", nil
	}
	return c.handOver(leader, to), func() {}
}

// leap has a node lead whose clock is an hour ahead of what log time is.
func (c *chaos) leap() (string, func()) {
	leader, to := c.heir()
	if to < 0 {
		return "", nil
	}
	c.leaps++
	c.setClocks(time.Duration(c.leaps)*time.Hour, to)
	return c.handOver(leader, to), func() { c.setClocks(0, to) }
}

// heir draws a node that may be given the lead, -1 where none can.
func (c *chaos) heir() (leader, to int) {
	if !c.world.whole() {
		return -1, -1
	}
	if leader = c.leads(); leader < 0 {
		return -1, -1
	}
	return leader, (leader + 1 + c.rng.IntN(2)) % len(c.nodes)
}

func (c *chaos) handOver(leader, to int) string {
	r := c.nodes[leader].gearsfs("nodes", "transfer", fmt.Sprint("n", to+1))
	return fmt.Sprintf("to n%d: status %d %s", to+1, r.status, strings.TrimSpace(r.stderr))
}

// faultProgram is a gearsfsd whose clock can be set wrong.
var faultProgram = func() func(t testing.TB) string {
	const name = "gearsfsd-faultclock"
	build := sync.OnceValue(func() error {
		cmd := exec.Command("go", "build", "-tags", "faultclock", "-o", filepath.Join(binDir, name), "../cmd/gearsfsd")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
		return nil
	})
	return func(t testing.TB) string {
		t.Helper()
		require.NoError(t, build())
		return name
	}
}()
