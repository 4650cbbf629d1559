package persist

import "github.com/gearsfs/gearsfs/gears"

func placeAt(n uint64) gears.Place { return gears.Place{Pos: gears.Pos(n * 100), Seq: gears.Seq(n)} }
