package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// mounted is a file system that is mounted where it can be worked on.
type mounted interface {
	String() string
	// start makes an empty file system and mounts it.
	start(ctx context.Context) error
	// again mounts it anew: whoever serves it remembers nothing.
	again(ctx context.Context) error
	dir() string
	// pids are of the processes that serve it.
	pids() []int
	stop() error
}

// mounts compares the mount with go-fuse's loopback example on the same disk and with
// JuiceFS, and three nodes' with one's. The bytes of files that the example has open the
// kernel passes on to the disk's file system by itself (FUSE passthrough), so
// reads and writes beside it are beside the disk's file system. Who checks what it
// reads, as GearsFS does, has to be asked: so the example is measured by requests, too.
func mounts(ctx context.Context, b *bench) error {
	if err := b.build(ctx, "github.com/hanwen/go-fuse/v2/example/loopback"); err != nil {
		return err
	}
	tree, err := b.smallFiles(ctx)
	if err != nil {
		return err
	}
	sides := []mounted{
		&gearsMount{b: b}, &loopbackMount{b: b, requests: true}, &loopbackMount{b: b},
		&clusterMount{gears: gears{members: members{b: b}, size: clusterNodes, network: "tcp"}},
	}
	juice, err := b.juiceFSSide(ctx)
	if err != nil {
		return err
	}
	sides = append(sides, juice...)
	figures := make([]map[string][]float64, len(sides))
	for i := range figures {
		figures[i] = make(map[string][]float64)
	}
	works := mountWorks(tree)
	for range b.rounds {
		for i, s := range sides {
			_, many := s.(*clusterMount)
			if err := b.measureMount(ctx, s, works, many, figures[i]); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
	}
	fmt.Println("the mount, go-fuse's loopback example on the same disk by requests, and the example as it is (passthrough); medians, and of the rounds' ratios to each the median, least and largest")
	printMounts(works, figures[0], figures[1:3], func(w mountWork) string { return w.aim })
	if len(juice) > 0 {
		fmt.Println("\nthe mount and JuiceFS, its metadata in badger and its blocks in a directory on the same disk")
		printMounts(works, figures[0], figures[4:], func(w mountWork) string { return w.juice })
	}
	fmt.Println("\nthree nodes on this machine, through the mount of the first of them, and one node")
	printMounts(works, figures[3], figures[:1], func(w mountWork) string { return w.many })
	return nil
}

// The rows of the memory of the serving processes: at the end of the works, or before
// they were mounted anew for the next, whatever is more; and the most that they ever had.
const (
	memoryRow = "memory after all that"
	peakRow   = "peak of that memory"
)

// measureMount does all the works, or those that several nodes are measured by,
// in an empty file system.
func (b *bench) measureMount(ctx context.Context, s mounted, works []mountWork, many bool, figures map[string][]float64) (err error) {
	if err := s.start(ctx); err != nil {
		return errors.Join(err, s.stop())
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	memory, peak := 0.0, 0.0
	look := func() {
		memory, peak = max(memory, memoryMiB(s, "VmRSS")), max(peak, memoryMiB(s, "VmHWM"))
	}
	for _, w := range works {
		if many && w.many == "" || w.run == nil {
			continue
		}
		if w.caches != warm {
			look()
		}
		switch w.caches {
		case coldMount:
			err = s.again(ctx)
		case cold:
			err = errors.Join(s.again(ctx), dropCaches())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		figure, err := w.run(ctx, s.dir())
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		figures[w.name] = append(figures[w.name], figure)
	}
	look()
	figures[memoryRow] = append(figures[memoryRow], memory)
	figures[peakRow] = append(figures[peakRow], peak)
	return ctx.Err()
}

// memoryMiB is a field of proc(5)'s status, of all who serve a mount; a process that
// has ended has none.
func memoryMiB(s mounted, field string) (all float64) {
	for _, pid := range s.pids() {
		if bytes, err := memoryBytes(pid, field); err == nil {
			all += float64(bytes) / (1 << 20)
		}
	}
	return all
}

// printMounts prints the rows that all have, and what each ratio should be.
func printMounts(works []mountWork, ours map[string][]float64, theirs []map[string][]float64, aim func(mountWork) string) {
	for _, w := range works {
		our := ours[w.name]
		if len(our) == 0 {
			continue
		}
		values, ratios := fmt.Sprintf("%10.4g", median(our)), ""
		for _, other := range theirs {
			their := other[w.name]
			values += fmt.Sprintf(" %10.4g", median(their))
			ratios += " " + spread(our, their)
		}
		fmt.Printf("%-34s %s %-8s ratio%s   aim %s\n", w.name, values, w.unit, ratios, aim(w))
	}
}

// spread is the median, least and largest of the rounds' ratios.
func spread(ours, theirs []float64) string {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
	}
	return fmt.Sprintf("%5.2f (%.2f to %.2f)", median(ratios), slices.Min(ratios), slices.Max(ratios))
}

// dropCaches makes the kernel forget what it has of any file.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// mountDirs makes a directory with others in it.
func (b *bench) mountDirs(pattern string, names ...string) (paths []string, err error) {
	work, err := os.MkdirTemp(b.dir, pattern)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		path := filepath.Join(work, name)
		paths = append(paths, path)
		err = errors.Join(err, os.Mkdir(path, 0o755))
	}
	return paths, err
}

// gearsMount is a mount with a node of its own.
type gearsMount struct {
	b       *bench
	at      string
	data    string
	process *process
}

var _ mounted = (*gearsMount)(nil)

func (g *gearsMount) String() string { return "gearsfs" }

func (g *gearsMount) start(ctx context.Context) error {
	dirs, err := g.b.mountDirs("mount-", "mnt", "data")
	if err != nil {
		return err
	}
	g.at, g.data = dirs[0], dirs[1]
	return g.mount(ctx)
}

func (g *gearsMount) mount(ctx context.Context) (err error) {
	g.process, err = g.b.startProcess(ctx, "mounted on", "gearsfs", "mount", "--data", g.data, g.at)
	return err
}

func (g *gearsMount) again(ctx context.Context) error {
	if err := g.process.stop(); err != nil {
		return err
	}
	return g.mount(ctx)
}

func (g *gearsMount) dir() string { return g.at }

func (g *gearsMount) pids() []int { return familyOf(g.process.pid()) }

func (g *gearsMount) stop() error {
	if g.process == nil {
		return nil
	}
	return errors.Join(g.process.stop(), os.RemoveAll(filepath.Dir(g.at)))
}

// clusterMount is the mount of the first of some nodes on this machine.
type clusterMount struct{ gears }

var _ mounted = (*clusterMount)(nil)

func (c *clusterMount) String() string { return "gearsfs, three nodes" }

func (c *clusterMount) start(ctx context.Context) (err error) {
	if err := c.gears.start(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(c.dir(), 0o755); err != nil {
		return err
	}
	first := c.all[0]
	if err := first.stop(); err != nil {
		return err
	}
	first.args = append(first.args, "--mount", c.dir())
	return c.launch(ctx, first)
}

func (c *clusterMount) again(ctx context.Context) error {
	if err := c.all[0].stop(); err != nil {
		return err
	}
	return c.launch(ctx, c.all[0])
}

func (c *clusterMount) dir() string { return filepath.Join(c.gears.dir, "mnt") }

func (c *clusterMount) pids() []int { return []int{c.all[0].pid()} }

func (c *clusterMount) stop() error {
	if len(c.all) > 0 && c.all[0].process != nil {
		if err := c.all[0].stop(); err != nil { // it unmounts
			return errors.Join(err, c.gears.stop())
		}
	}
	return c.gears.stop()
}

// familyOf returns a process and those that it has begun.
func familyOf(pid int) []int {
	all := []int{pid}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return all
	}
	for _, task := range tasks { // a child is of the thread that began it
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, familyOf(child)...)
			}
		}
	}
	return all
}
