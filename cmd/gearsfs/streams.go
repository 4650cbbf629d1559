package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
)

// streamsPage is how many streams are asked for at once.
const streamsPage = 256

// streamJSON is a stream as -o json shows it.
type streamJSON struct {
	keyJSON
	Records    uint64      `json:"records"`
	Bytes      uint64      `json:"bytes"`
	Head       gearsfs.Seq `json:"head"`
	Tail       gearsfs.Seq `json:"tail"`
	Waiting    uint32      `json:"waiting"`
	Leased     uint64      `json:"leased"`
	Delayed    uint64      `json:"delayed"`
	Discarded  uint64      `json:"discarded"`
	Sealed     bool        `json:"sealed"`
	RecordsMax uint64      `json:"records_max"`
	BytesMax   uint64      `json:"bytes_max"`
	Version    uint64      `json:"version"`
}

func streamToJSON(s gearsfs.StreamInfo) streamJSON {
	return streamJSON{
		keyJSON: keyToJSON(s.Key), Records: s.Records, Bytes: s.Bytes, Head: s.Head.Seq, Tail: s.Tail.Seq,
		Waiting: s.Waiting, Leased: s.Leased, Delayed: s.Delayed, Discarded: s.Discarded, Sealed: s.Sealed,
		RecordsMax: s.Limits.Records, BytesMax: s.Limits.Bytes, Version: s.Version,
	}
}

func (a *app) streamsCommand() *cobra.Command {
	var at string
	var format formatFlag
	c := &cobra.Command{
		Use:   "streams FILE",
		Short: "List the streams of a file",
		Long: `List the streams of a file: the records that can be taken, the bytes of all that are
left, the seq of the first record left (HEAD) and that of the next to be put (TAIL), takes
and peeks that wait, records that are leased, records that went by --age or for newer
ones, and the seal. Records whose time has not come are in -o json only, as delayed.`,
		Example: `  gearsfs streams gears/jobs
  gearsfs streams :/jobs -o json`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.streams(c.Context(), at, args[0], format.json)
		},
	}
	nodeFlag(c.Flags(), &at)
	c.Flags().VarP(&format, "output", "o", "write one JSON object per line")
	return c
}

func (a *app) streams(ctx context.Context, at, arg string, asJSON bool) error {
	t, err := a.open(ctx, arg, at)
	if err != nil {
		return err
	}
	rows := [][]string{{"KEY", "RECORDS", "BYTES", "HEAD", "TAIL", "WAITING", "LEASED", "DISCARDED", "SEALED"}}
	for after := gearsfs.Key(""); ; {
		page, err := t.ListStreams(ctx, t.file(), after, streamsPage)
		if err != nil {
			return fmt.Errorf("%s: %w", arg, cause(ctx, err))
		}
		for _, s := range page {
			j := streamToJSON(s)
			if asJSON {
				if err := a.printJSON(j); err != nil {
					return err
				}
				continue
			}
			sealed := "no"
			if j.Sealed {
				sealed = "yes"
			}
			rows = append(rows, []string{
				string(s.Key), number(j.Records), number(j.Bytes), number(uint64(j.Head)), number(uint64(j.Tail)),
				number(uint64(j.Waiting)), number(j.Leased), number(j.Discarded), sealed,
			})
		}
		if len(page) < streamsPage {
			break
		}
		after = page[len(page)-1].Key
	}
	if asJSON {
		return nil
	}
	return a.table(rows)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// streamCommand makes one of the commands that change a stream as a whole.
func (a *app) streamCommand(name, short, long, example string, change dgm.StreamChange) *cobra.Command {
	var at string
	c := &cobra.Command{
		Use: name + " FILE KEY", Short: short, Long: long, Example: example,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.configure(c.Context(), at, args, change)
		},
	}
	nodeFlag(c.Flags(), &at)
	return c
}

func (a *app) configure(ctx context.Context, at string, args []string, change dgm.StreamChange) error {
	key, err := parseKey(args[1])
	if err != nil {
		return err
	}
	t, err := a.open(ctx, args[0], at)
	if err != nil {
		return err
	}
	if err := t.Configure(ctx, t.file(), key, change); err != nil {
		return fmt.Errorf("%s %s: %w", t.arg, key, cause(ctx, err))
	}
	return nil
}

func (a *app) sealCommands() []*cobra.Command {
	yes, no := true, false
	return []*cobra.Command{
		a.streamCommand("seal", "Let no more records be put into a stream",
			"Seal a stream: puts are refused (status 4), and once it is drained takes end (status 4).\nDrained is a stream without records, those that are leased or delayed included.",
			"  gearsfs seal gears/jobs data", dgm.StreamChange{Seal: &yes}),
		a.streamCommand("unseal", "Let records be put into a sealed stream again",
			"Take the seal off a stream. A stream that is missing is an error.",
			"  gearsfs unseal gears/jobs data", dgm.StreamChange{Seal: &no}),
		a.streamCommand("clear", "Remove all records of a stream",
			"Empty a stream. Leases on its records end; the stream, its seal and its limits stay.\nA stream that is missing is an error.",
			"  gearsfs clear gears/jobs data", dgm.StreamChange{Clear: true}),
		a.streamCommand("drop", "Remove a stream with its records and settings",
			"Remove a stream from its file. The stream data is the file's own bytes and stays: clear it.",
			"  gearsfs drop gears/jobs old", dgm.StreamChange{Drop: true}),
	}
}
