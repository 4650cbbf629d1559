package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
)

// A receipt is written as one word: file, position, seq and fence, in decimal,
// separated by dots. Its key is not in there: it may contain blanks, and the
// commands that read receipts are told it anyway.

func receiptText(r gearsfs.Receipt) string {
	return fmt.Sprintf("%d.%d.%d.%d", r.Ino, r.Place.Pos, r.Place.Seq, r.Fence)
}

// parseReceipt reads what receiptText wrote, and nothing else.
func parseReceipt(s string, key gearsfs.Key) (gearsfs.Receipt, error) {
	var numbers [4]uint64
	parts := strings.Split(s, ".")
	if len(parts) != len(numbers) {
		return gearsfs.Receipt{}, usagef("%q is not a receipt: take --lease -o json prints one", s)
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != part {
			return gearsfs.Receipt{}, usagef("%q is not a receipt: take --lease -o json prints one", s)
		}
		numbers[i] = n
	}
	r := gearsfs.Receipt{
		Ino: gearsfs.Ino(numbers[0]), Key: key,
		Place: gearsfs.Place{Pos: gearsfs.Pos(numbers[1]), Seq: gearsfs.Seq(numbers[2])},
		Fence: numbers[3],
	}
	if r.Ino == 0 || r.Place.Seq == 0 || r.Fence == 0 {
		return gearsfs.Receipt{}, usagef("%q is not a receipt: take --lease -o json prints one", s)
	}
	return r, nil
}

// receiptCommand makes a command that settles one lease by its receipt. span is
// whether it may be given a DURATION, must whether it has to.
func (a *app) receiptCommand(use, short, long, example string, span, must bool, settle func(s *dgm.Settle, d time.Duration)) *cobra.Command {
	var at string
	low, high := 3, 3
	if span {
		high = 4
	}
	if must {
		low = 4
	}
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: between(low, high),
		RunE: func(c *cobra.Command, args []string) error {
			var d time.Duration
			if len(args) == 4 {
				var err error
				if d, err = units.ParseDuration(args[3]); err != nil {
					return usagef("%v", err)
				}
				if must && d == 0 {
					return usagef("a lease can't be extended by nothing: nack gives the record back")
				}
			}
			var s dgm.Settle
			settle(&s, d)
			return a.settleReceipt(c.Context(), at, args, s)
		},
	}
	nodeFlag(c.Flags(), &at)
	return c
}

func (a *app) receiptCommands() []*cobra.Command {
	return []*cobra.Command{
		a.receiptCommand("ack FILE KEY RECEIPT", "Acknowledge a record that was leased",
			`Acknowledge a record that was handed out by take --lease: it is removed for good. Fails
(status 1) where the lease is not held any more, because it ran out, was settled already or
the record went away.`,
			"  gearsfs ack gears/jobs data \"$receipt\"", false, false,
			func(*dgm.Settle, time.Duration) {}),
		a.receiptCommand("nack FILE KEY RECEIPT [DURATION]", "Give back a record that was leased",
			`Give back a record that was handed out by take --lease: to its old place, so that it can
be taken again at once, or after DURATION.`,
			"  gearsfs nack gears/jobs data \"$receipt\" 10s", true, false,
			func(s *dgm.Settle, d time.Duration) { s.Return, s.Delay = true, d }),
		a.receiptCommand("extend FILE KEY RECEIPT DURATION", "Keep a leased record for longer",
			`Let the lease of a record that was handed out by take --lease end after DURATION from now,
whatever was said before.`,
			"  gearsfs extend gears/jobs data \"$receipt\" 5m", true, true,
			func(s *dgm.Settle, d time.Duration) { s.Extend = d }),
	}
}

func (a *app) settleReceipt(ctx context.Context, at string, args []string, s dgm.Settle) error {
	key, err := parseKey(args[1])
	if err != nil {
		return err
	}
	receipt, err := parseReceipt(args[2], key)
	if err != nil {
		return err
	}
	t, err := a.open(ctx, args[0], at)
	if err != nil {
		return err
	}
	attr, err := t.Resolve(ctx, t.path, true)
	if err != nil {
		return fmt.Errorf("%s: %w", t.arg, cause(ctx, err))
	}
	if attr.Ino != receipt.Ino {
		return gearsfs.ErrGone.Because("%s is not the file that the receipt %s is of", t.arg, args[2])
	}
	s.Receipts = []gearsfs.Receipt{receipt}
	err = t.Settle(ctx, s)
	if errors.Is(err, gearsfs.ErrGone) {
		err = gearsfs.ErrGone.Because("the lease is gone: it ran out, was settled before, or the record was removed")
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", t.arg, key, cause(ctx, err))
	}
	return nil
}
