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

// splitSpan takes the DURATION off arguments that end in one, which is no receipt.
func splitSpan(args []string) (receipts []string, span string) {
	last := args[len(args)-1]
	if strings.Count(last, ".") == 3 || len(args) == 1 {
		return args, ""
	}
	return args[:len(args)-1], last
}

// receiptCommand makes a command that settles leases by their receipts, all or
// none. span is whether it may be given a DURATION, must whether it has to.
func (a *app) receiptCommand(use, short, long, example string, span, must bool, settle func(s *dgm.Settle, d time.Duration)) *cobra.Command {
	var at string
	low := 3
	if must {
		low = 4
	}
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: atLeast(low),
		RunE: func(c *cobra.Command, args []string) error {
			var d time.Duration
			receipts := args[2:]
			if span {
				var text string
				var err error
				if receipts, text = splitSpan(receipts); text != "" {
					if d, err = units.ParseDuration(text); err != nil {
						return usagef("%v", err)
					}
				}
				if must && d == 0 {
					return usagef("a lease can't be extended by nothing: nack gives the record back")
				}
			}
			var s dgm.Settle
			settle(&s, d)
			return a.settleReceipts(c.Context(), at, args[0], args[1], receipts, s)
		},
	}
	nodeFlag(c.Flags(), &at)
	return c
}

func (a *app) receiptCommands() []*cobra.Command {
	return []*cobra.Command{
		a.receiptCommand("ack FILE KEY RECEIPT...", "Acknowledge records that were leased",
			`Acknowledge records that were handed out by take --lease: they are removed for good, all
or none. Fails (status 1) where a lease is not held any more, because it ran out, was settled
already or the record went away.`,
			"  gearsfs ack gears/jobs data \"$receipt\"", false, false,
			func(*dgm.Settle, time.Duration) {}),
		a.receiptCommand("nack FILE KEY RECEIPT... [DURATION]", "Give back records that were leased",
			`Give back records that were handed out by take --lease: to their old places, so that they
can be taken again at once, or after DURATION.`,
			"  gearsfs nack gears/jobs data \"$receipt\" 10s", true, false,
			func(s *dgm.Settle, d time.Duration) { s.Return, s.Delay = true, d }),
		a.receiptCommand("extend FILE KEY RECEIPT... DURATION", "Keep leased records for longer",
			`Let the leases of records that were handed out by take --lease end after DURATION from now,
whatever was said before.`,
			"  gearsfs extend gears/jobs data \"$receipt\" 5m", true, true,
			func(s *dgm.Settle, d time.Duration) { s.Extend = d }),
	}
}

func (a *app) settleReceipts(ctx context.Context, at, file, keyText string, texts []string, s dgm.Settle) error {
	key, err := parseKey(keyText)
	if err != nil {
		return err
	}
	for _, text := range texts {
		receipt, err := parseReceipt(text, key)
		if err != nil {
			return err
		}
		s.Receipts = append(s.Receipts, receipt)
	}
	t, err := a.open(ctx, file, at)
	if err != nil {
		return err
	}
	attr, err := t.Resolve(ctx, t.path, true)
	if err != nil {
		return fmt.Errorf("%s: %w", t.arg, cause(ctx, err))
	}
	for i, receipt := range s.Receipts {
		if attr.Ino != receipt.Ino {
			return gearsfs.ErrGone.Because("%s is not the file that the receipt %s is of", t.arg, texts[i])
		}
	}
	err = t.Settle(ctx, s)
	if errors.Is(err, gearsfs.ErrGone) {
		err = gearsfs.ErrGone.Because("the lease is gone: it ran out, was settled before, or the record was removed")
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", t.arg, key, cause(ctx, err))
	}
	return nil
}
