mod orchestrator;
