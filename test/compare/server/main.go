// Command server is the program under load in the comparison: one handler behind each way of
// listening. Package serve has it.
package main

import (
	"os"

	"overlap/test/compare/internal/serve"
)

func main() { os.Exit(serve.Main(os.Args[1:])) }
