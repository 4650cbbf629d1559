package main

import (
	"context"
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type quotaOptions struct {
	node   string
	bytes  units.Size
	inodes inodesFlag
	remove bool
	format formatFlag
}

func (a *app) quotaCommand() *cobra.Command {
	var o quotaOptions
	c := &cobra.Command{
		Use:   "quota DIR",
		Short: "Bound what a directory may hold, or show that",
		Long: `Bound the bytes and the inodes of a directory with all that is below it. Bytes are those
of the records of all streams, as du counts them; inodes are files, directories and links,
DIR included. What would make it more fails; takes, removals and writes in place go on. Of
quotas within each other each counts. df of the directory shows the quota.
Without flags, print it, one "name value" per line; 0 is no limit. A new quota counts what
is there: while that goes on, counting is true. Between quotas files can be renamed,
directories that are not empty must be copied, as mv does. Only the owner of the volume's
root directory may set quotas.`,
		Example: `  gearsfs quota gears/home/ann --bytes 10G --inodes 100000
  gearsfs quota gears/home/ann
  gearsfs quota gears/home/ann --remove`,
		Args: apart(exactly(1), "bytes remove", "inodes remove"),
		RunE: func(c *cobra.Command, args []string) error { return a.quota(c.Context(), o, c.Flags(), args[0]) },
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.Var(&o.bytes, "bytes", "hold at most this many bytes; 0 is no limit")
	f.Var(&o.inodes, "inodes", "hold at most this many files, directories and links; 0 is no limit")
	f.BoolVar(&o.remove, "remove", false, "take the quota away")
	f.VarP(&o.format, "output", "o", "print the quota as JSON")
	return c
}

// quotaJSON is a directory's quota as -o json shows it.
type quotaJSON struct {
	Bytes      uint64 `json:"bytes"`
	BytesUsed  uint64 `json:"bytes_used"`
	Inodes     uint64 `json:"inodes"`
	InodesUsed uint64 `json:"inodes_used"`
	Counting   bool   `json:"counting"`
}

func (a *app) quota(ctx context.Context, o quotaOptions, flags *pflag.FlagSet, dir string) error {
	t, err := a.open(ctx, dir, o.node)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("%s: %w", dir, cause(ctx, err)) }
	attr, err := t.Resolve(ctx, t.path, true)
	if err != nil {
		return fail(err)
	}
	set := dgm.SetQuota{Remove: o.remove}
	if flags.Changed("bytes") {
		set.Bytes = &o.bytes.Value
	}
	if flags.Changed("inodes") {
		set.Inodes = &o.inodes.value
	}
	if set != (dgm.SetQuota{}) {
		if err := t.SetQuota(ctx, attr.Ino, set); err != nil {
			return fail(err)
		}
		return nil
	}
	q, err := t.Quota(ctx, attr.Ino)
	if err != nil {
		return fail(err)
	}
	return a.printQuota(q, o.format.json)
}

func (a *app) printQuota(q gearsfs.Quota, asJSON bool) error {
	if asJSON {
		return a.printJSON(quotaJSON{q.Bytes, q.BytesUsed, q.Inodes, q.InodesUsed, q.Counting})
	}
	return a.pairs([]pair{
		{"bytes", q.Bytes}, {"bytes-used", q.BytesUsed}, {"inodes", q.Inodes}, {"inodes-used", q.InodesUsed}, {"counting", q.Counting},
	})
}

// inodesFlag is a flag whose value is a number of inodes; 0 is "no limit".
type inodesFlag struct{ value uint64 }

var _ pflag.Value = (*inodesFlag)(nil)

func (f *inodesFlag) Type() string   { return "N" }
func (f *inodesFlag) String() string { return "" }

func (f *inodesFlag) Set(s string) error {
	var n limitFlag
	if n.Set(s) != nil {
		return fmt.Errorf("%q is not a number of inodes", s)
	}
	f.value = n.value
	return nil
}
