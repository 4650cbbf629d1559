package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/spf13/cobra"
)

type fsckOptions struct {
	node, data string
	repair     bool
	format     formatFlag
}

func (a *app) fsckCommand() *cobra.Command {
	var o fsckOptions
	c := &cobra.Command{
		Use: "fsck", Short: "Check a node's data",
		Long: `Check the data of one node: that its tables agree with each other, and that all bytes of
large payloads are there and are what was written. One line for each fault says what it is,
the file, stream and bytes, and where on the disk these are or should be; the last line sums
up. With --data the node must not run; else the node is asked, which reads no more than
64 MiB a second for it. With --repair it fetches what is damaged or missing from the other
nodes of its volume, and frees what nothing refers to (that is no fault).

The status is 1 where faults are left, 0 where there are none.`,
		Example: `  gearsfs fsck --node host:4096
  gearsfs fsck --repair && echo sound
  gearsfs fsck --data /var/lib/gearsfs -o json`,
		Args: apart(exactly(0), "node data"),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("data") {
				return a.fsckData(c.Context(), o)
			}
			return a.fsckNode(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.data, "data", "", "check the data directory `DIR` of a node that does not run")
	f.BoolVar(&o.repair, "repair", false, "mend what other nodes have, and free what nothing refers to")
	clusterFlags(f, &o.node, &o.format)
	return c
}

func (a *app) fsckNode(ctx context.Context, o fsckOptions) error {
	addrs := a.hereAddrs(o.node)
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := a.dialCluster(dialing, addrs)
	if err != nil {
		return dialError(ctx, addrs, err)
	}
	defer c.Close() //nolint:errcheck // nothing is left that matters
	show, clear := a.fsckProgress()
	report, err := c.Fsck(ctx, o.repair, show)
	clear()
	if err != nil {
		return cause(ctx, err)
	}
	return a.printFsck(report, o.format.json)
}

// fsckData checks data that no node has open, in this process and for nobody else.
func (a *app) fsckData(ctx context.Context, o fsckOptions) (err error) {
	if o.data == "" {
		return usagef("DIR is empty")
	}
	var broken atomic.Pointer[error]
	vol, err := node.OpenVolume(ctx, node.Config{
		Data: o.data, Offline: true, ScrubBytesPerSecond: -1,
		Log: slog.New(slog.NewTextHandler(a.errs, &slog.HandlerOptions{Level: slog.LevelError})),
	}, func(err error) { broken.CompareAndSwap(nil, &err) })
	switch {
	case errors.Is(err, gearsfs.ErrInUse):
		return fmt.Errorf("%w: the node runs, so ask it, with --node", err)
	case err != nil:
		return cause(ctx, err)
	}
	show, clear := a.fsckProgress()
	report, err := vol.Fsck(ctx, o.repair, 0, show)
	clear()
	if failed := broken.Load(); failed != nil {
		err = errors.Join(err, *failed)
	}
	if err == nil {
		err = a.printFsck(report, o.format.json)
	}
	return errors.Join(cause(ctx, err), vol.Close())
}

// fsckProgress shows how far a check is, on a terminal only.
func (a *app) fsckProgress() (show func(gearsfs.FsckReport), clear func()) {
	f, ok := a.errs.(*os.File)
	if !ok || !isTerminal(f) {
		return nil, func() {}
	}
	show = func(r gearsfs.FsckReport) {
		fmt.Fprintf(a.errs, "\r\x1b[K%d MiB checked, %d faults", r.Bytes>>20, r.Found)
	}
	return show, func() { fmt.Fprint(a.errs, "\r\x1b[K") }
}

// faultJSON is a fault as -o json shows it.
type faultJSON struct {
	What string `json:"what"`
	pathJSON
	Ino gearsfs.Ino `json:"inode"`
	keyJSON
	Pos     gearsfs.Pos `json:"offset"`
	Bytes   uint64      `json:"bytes"`
	Segment string      `json:"segment"`
	At      uint64      `json:"segment_offset"`
	Reason  string      `json:"reason"`
	Mended  bool        `json:"mended"`
}

// fsckJSON is the last line of -o json.
type fsckJSON struct {
	Found        uint64 `json:"faults"`
	Mended       uint64 `json:"mended"`
	Extents      uint64 `json:"extents"`
	Bytes        uint64 `json:"bytes"`
	Segments     uint64 `json:"segments"`
	Allocated    uint64 `json:"allocated"`
	Unreferenced uint64 `json:"unreferenced"`
	Recent       uint64 `json:"recent"`
	Freed        uint64 `json:"freed"`
	Unswept      string `json:"unswept"`
}

func (a *app) printFsck(r gearsfs.FsckReport, asJSON bool) error {
	for _, f := range r.Faults {
		var err error
		if asJSON {
			err = a.printJSON(faultJSON{f.What, pathToJSON(f.Path), f.Ino, keyToJSON(f.Key), f.Pos, f.Bytes, f.Segment, f.At, f.Reason, f.Mended})
		} else {
			err = a.printf("%s\n", a.shown(faultLine(f)))
		}
		if err != nil {
			return err
		}
	}
	var err error
	if asJSON {
		err = a.printJSON(fsckJSON{r.Found, r.Mended, r.Extents, r.Bytes, r.Segments, r.Allocated, r.Unreferenced, r.Recent, r.Freed, r.Unswept})
	} else {
		err = a.printf("%s\n", fsckSummary(r))
	}
	if err == nil && r.Wrong() > 0 {
		err = gearsfs.ErrDamaged.Because("%d faults are left: --repair mends what another node has", r.Wrong())
	}
	return err
}

func faultLine(f gearsfs.Fault) string {
	line := f.What + ": "
	if f.What != gearsfs.FaultTables {
		switch {
		case f.Path != "":
			line += f.Path
		case f.Ino != 0:
			line += fmt.Sprintf("inode %d", f.Ino)
		default:
			line += "a record that a session may ask for again"
		}
		line += fmt.Sprintf(" %s: %d bytes at %d, in %s at %d: ", f.Key, f.Bytes, f.Pos, f.Segment, f.At)
	}
	line += f.Reason
	if f.Mended {
		line += " (mended)"
	}
	return line
}

func fsckSummary(r gearsfs.FsckReport) string {
	line := fmt.Sprintf("%d faults", r.Found)
	if r.Mended > 0 {
		line += fmt.Sprintf(", %d of them mended", r.Mended)
	}
	if n := r.Found - uint64(len(r.Faults)); n > 0 {
		line += fmt.Sprintf(", %d of them not listed", n)
	}
	line += fmt.Sprintf("; %d bytes of large payloads read, %d on disk in %d segments, %d that nothing refers to",
		r.Bytes, r.Allocated, r.Segments, r.Unreferenced)
	if r.Recent > 0 {
		line += fmt.Sprintf(" (and %d that may be uploads)", r.Recent)
	}
	if r.Freed > 0 {
		line += fmt.Sprintf(", %d freed", r.Freed)
	}
	if r.Unswept != "" {
		line += "; " + r.Unswept
	}
	return line
}
