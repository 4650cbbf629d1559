package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	benchName = "gearsfs-bench-" // begins the name of the directory that all is in

	// Each measurement ends after this long, so all take some 20 s.
	benchSpan = 1500 * time.Millisecond

	benchSizeDefault  = 256 << 20
	benchSpareBytes   = 128 << 20 // must be free besides twice the large file
	benchClientsMax   = 256
	benchClientsUsual = 16
)

type benchOptions struct {
	node    string
	size    units.Size
	clients int
	format  formatFlag
}

// measured is a row of the table. The percentiles are of single operations, 0
// where they were not looked at.
type measured struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	P50   float64 `json:"p50_seconds,omitempty"`
	P99   float64 `json:"p99_seconds,omitempty"`
}

// benchJSON is what -o json shows.
type benchJSON struct {
	Directory  string     `json:"directory"`  // "" with --node
	Filesystem string     `json:"filesystem"` // of the directory
	Address    string     `json:"address"`    // of the node; "" where there is none
	Node       string     `json:"node"`
	Version    string     `json:"version"`
	Volume     string     `json:"volume"`
	Leader     string     `json:"leader"`
	Voters     uint32     `json:"voters"`
	Clients    int        `json:"clients"`
	SizeBytes  uint64     `json:"size_bytes"` // of the large file, at most
	Results    []measured `json:"results"`
}

func (a *app) benchCommand() *cobra.Command {
	o := benchOptions{}
	c := &cobra.Command{
		Use: "bench [DIR | --node ADDR]", Short: "Measure a directory, or a node's streams",
		Long: `Measure how fast a directory is, on a mount of GearsFS or any other: a large file, small
files and metadata; and on a mount, or with --node, how fast records are put and taken.
Without either it is the current directory's mount, else the node at ADDR, streams only.
It takes some 20 seconds, works in a new directory of its own, ` + benchName + `*, and removes that
at the end, also when it is told to stop. Each put and take is durable when it counts.
Reads come from memory as far as the system keeps files there. What else runs on the machine
changes the figures: repeat it, and compare figures of one machine and one hour.`,
		Example: "  gearsfs bench ~/gears\n  gearsfs bench /tmp                     # to compare with\n  gearsfs bench --node host:4096 -o json",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && o.node != "":
				return usagef("DIR and --node exclude each other")
			case len(args) > 0 && args[0] == "":
				return usagef("DIR is empty")
			case o.clients < 1 || o.clients > benchClientsMax:
				return usagef("--clients is from 1 to %d", benchClientsMax)
			case o.size.Given && (o.size.Value < benchChunkBytes || o.size.Value > 1<<40):
				return usagef("--size is from 1M to 1024G")
			case !o.size.Given:
				o.size.Value = benchSizeDefault
			}
			dir := ""
			if len(args) > 0 {
				dir = args[0]
			} else if _, err := a.locate("."); err == nil && o.node == "" {
				dir = "."
			}
			return a.bench(c.Context(), o, dir)
		},
	}
	nodeFlag(c.Flags(), &o.node)
	c.Flags().Var(&o.size, "size", "write at most `SIZE` into the large file (default 256M)")
	c.Flags().IntVar(&o.clients, "clients", benchClientsUsual, "how many clients put and take at once")
	c.Flags().VarP(&o.format, "output", "o", "write one JSON object")
	return c
}

// bench measures and prints. What was made is gone when it returns.
func (a *app) bench(ctx context.Context, o benchOptions, dir string) error {
	j := benchJSON{Directory: dir, Clients: o.clients, SizeBytes: o.size.Value}
	base := "/"
	addrs := ""
	if dir == "" {
		addrs = a.addrs(o.node)
	} else {
		kind, err := checkBenchDir(dir, o.size.Value)
		if err != nil {
			return err
		}
		j.Filesystem = kind
		if at, err := a.locate(dir); err == nil {
			j.Filesystem, base, addrs = "GearsFS", at.Path, at.Node
		}
	}
	var node target
	if addrs != "" {
		m, err := a.manager(ctx, addrs)
		if err != nil {
			return err
		}
		node = target{Manager: m, node: addrs, path: absolute(base), arg: addrs}
		if err := a.describeNode(ctx, &j, node); err != nil {
			return err
		}
	}
	if dir != "" {
		rows, err := benchFiles(ctx, dir, o.size.Value)
		if err != nil {
			return cause(ctx, err)
		}
		j.Results = append(j.Results, rows...)
	}
	if addrs != "" {
		rows, err := a.benchStreams(ctx, node, o.clients)
		if err != nil {
			return cause(ctx, err)
		}
		j.Results = append(j.Results, rows...)
	}
	if o.format.json {
		return a.printJSON(j)
	}
	return a.printBench(j)
}

// describeNode says which node it is, and refuses one that is nearly full.
func (a *app) describeNode(ctx context.Context, j *benchJSON, t target) error {
	s, err := t.Status(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	if s.Usage.BytesAvail < benchSpareBytes {
		return gearsfs.ErrNoSpace.Because("%d MiB are free at the node %s: bench needs %d", s.Usage.BytesAvail>>20, s.Name, benchSpareBytes>>20)
	}
	j.Address, j.Node, j.Version, j.Volume, j.Leader, j.Voters = t.node, s.Name, s.Version, s.Volume, s.Leader, s.Voters
	return nil
}

// checkBenchDir returns the type of the file system that dir is on, and refuses
// what is no directory or has too little space.
func checkBenchDir(dir string, size uint64) (string, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s: %w", dir, gearsfs.ErrNotDir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	free, need := fs.Bavail*uint64(fs.Bsize), 2*size+benchSpareBytes
	if free < need {
		return "", gearsfs.ErrNoSpace.Because("%s: %d MiB are free, bench needs %d: see --size", dir, free>>20, need>>20)
	}
	if name, ok := fsNames[uint32(fs.Type)]; ok {
		return name, nil
	}
	return fmt.Sprintf("%#x", uint32(fs.Type)), nil
}

// fsNames are the usual types of statfs(2).
var fsNames = map[uint32]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.NFS_SUPER_MAGIC: "nfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", 0x2fc12fc1: "zfs",
}

// printBench prints the table, below what it is of.
func (a *app) printBench(j benchJSON) error {
	if j.Directory != "" {
		if err := a.printf("directory %s, file system %s\n", a.shown(j.Directory), j.Filesystem); err != nil {
			return err
		}
	}
	if j.Address != "" {
		err := a.printf("node %s at %s, version %s, volume %s, voters %d, leader %s\n",
			a.shown(j.Node), a.shown(j.Address), j.Version, a.shown(j.Volume), j.Voters, a.shown(orNone(j.Leader)))
		if err != nil {
			return err
		}
	}
	rows := [][]string{{"WHAT", "RESULT", "UNIT", "P50", "P99"}}
	for _, r := range j.Results {
		rows = append(rows, []string{r.Name, benchNumber(r.Value), r.Unit, benchTime(r.P50), benchTime(r.P99)})
	}
	return a.table(rows)
}

func benchNumber(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func benchTime(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	if seconds < 1e-3 {
		return fmt.Sprintf("%.0f us", seconds*1e6)
	}
	return fmt.Sprintf("%.2f ms", seconds*1e3)
}

// rate makes a row of how often something was done, from how long each took.
func rate(name, unit string, took []time.Duration, span time.Duration) measured {
	r := measured{Name: name, Unit: unit, Value: float64(len(took)) / max(span, 1).Seconds()}
	r.P50, r.P99 = percentiles(took)
	return r
}

// percentiles sorts the times that operations took.
func percentiles(took []time.Duration) (p50, p99 float64) {
	if len(took) == 0 {
		return 0, 0
	}
	slices.Sort(took)
	return took[(len(took)-1)/2].Seconds(), took[(len(took)-1)*99/100].Seconds()
}

// repeat does f again and again until it was done max times or the span is over,
// and makes a row of it. Errors: f's, and ctx's.
func repeat(ctx context.Context, name, unit string, most int, f func(i int) error) (measured, error) {
	var took []time.Duration
	begin := time.Now()
	last := begin
	for i := 0; i < most && last.Sub(begin) < benchSpan; i++ {
		if ctx.Err() != nil {
			return measured{}, context.Cause(ctx)
		}
		if err := f(i); err != nil {
			return measured{}, fmt.Errorf("%s: %w", name, err)
		}
		now := time.Now()
		took = append(took, now.Sub(last))
		last = now
	}
	return rate(name, unit, took, last.Sub(begin)), nil
}

// benchStreams measures puts and takes in a new directory of t's volume, below
// t.path, and removes that.
func (a *app) benchStreams(ctx context.Context, t target, clients int) (rows []measured, err error) {
	dir, err := t.Resolve(ctx, t.path, true)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s%d-%d", benchName, os.Getpid(), time.Now().UnixNano())
	made, err := t.Make(ctx, dir.Ino, name, dgm.Make{Mode: unix.S_IFDIR | 0o700})
	if err != nil {
		return nil, fmt.Errorf("make a directory in %s of the volume: %w", t.path, err)
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
		if left := remove(ending, t, dir.Ino, gearsfs.Entry{Name: name, Attr: made}, true); left != nil {
			err = errors.Join(err, fmt.Errorf("remove :%s: %w", filepath.Join(t.path, name), left))
		}
	}()
	b := streamBench{app: a, addrs: t.node, path: filepath.Join(t.path, name), first: t.Manager}
	defer func() { err = errors.Join(err, b.close()) }()
	return b.run(ctx, clients)
}
