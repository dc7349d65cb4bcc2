from pipelines.embed.step import main

raise SystemExit(main())
